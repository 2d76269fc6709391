"""Defects of the program of iLLaVA's authors, one test each: what goes wrong there must go right here.

Numbers are those of the list in docs/illava.md. Proved elsewhere: scores are attention (4; test_encoder, test_backends),
squares of patches stay whole and survivors are encoded in their places (5; the dense references of test_encoder and
test_packed_encoder), no map of N x N (11; test_memory), the command line (13; test_plan).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate.core.selection import Selection
from foveate.engine import compat, decoder
from foveate.engine.attachment import Attachment
from foveate.engine.compat import cache_in
from foveate.spec import parse
from tests import tiny
from tests.oracles.dense_reference import decoder_layers
from tests.oracles.row_encoder import deeper, siglip_llava
from tests.spies import alive_columns, layer_calls, real
from tests.syncs import on_device, syncs_of_foveate, weights_on_device

LOGITS = 2e-4  # as the oracles
MATTERS = 1e-2  # what a changed input must move at least, logits being of size 10

CONFIGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "siglip": ("llava", siglip_llava),
    "internvl": ("internvl", lambda: deeper("internvl")),
    "qwen2_vl": ("qwen2_vl", lambda: None),
}
NAMES = tuple(CONFIGS)


def recipe(**words: Any) -> str:
    """The recipe in both parts, the LLM's in several layers."""
    usual = dict(variant="v1", vit_layers="[1]", vit_keep="[0.6]", llm_layers="[1, 3]", llm_keep="[0.7, 0.6]")
    return f"illava({', '.join(f'{word}={value}' for word, value in {**usual, **words}.items())})"


BOTH = recipe()


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    return compat.encoder_layers(model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower)


class Case:
    """A model, and prompts with one, two and no pictures."""

    def __init__(self, name: str) -> None:
        family, make = CONFIGS[name]
        config = make()
        self.model = tiny.tiny_model(family, config=config)
        with torch.no_grad():
            # Attention that is nearly uniform would rank by rounding errors.
            for parameter in encoder_layers(self.model).parameters():
                if parameter.ndim == 2 and parameter.std() < 0.05:
                    parameter.mul_(6.0)
        self.maker = tiny.Maker(family, config=config)
        self.rows = tiny.ragged_rows(self.maker, 3)
        self.inputs = self.maker.inputs(self.rows)

    def logits(self, plan: str, row: tiny.Row) -> Tensor:
        """Logits at the prompt's last token."""
        with torch.no_grad(), foveate.attach(self.model, plan):
            return self.model(**self.maker.inputs([row])).logits[0, -1]


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {}


@pytest.fixture(params=NAMES)
def case(request, cases) -> Case:
    if request.param not in cases:
        cases[request.param] = Case(request.param)
    return cases[request.param]


def swapped(row: tiny.Row, number: int, piece: Any) -> tiny.Row:
    """The row with another piece."""
    return tiny.Row([piece if at == number else old for at, old in enumerate(row.pieces)])


def test_1_every_frame_of_a_video_counts():
    model, maker = tiny.tiny_model("qwen2_vl"), tiny.Maker("qwen2_vl")
    video = maker.picture(1, kind="video")
    frames, high, wide = video.inputs["video_grid_thw"][0].tolist()
    row = tiny.Row([maker.text(5), video, maker.text(6)])
    inputs = maker.inputs([row])
    plan = recipe(llm_layers="[]", llm_keep="[]")
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        before = model(**inputs).logits[0, -1]
        (entry,) = attachment.trace.media
        units = high * wide // 4
        assert len(entry.kept_index) == frames * ((6 * units + 5) // 10)
        for frame in range(frames):
            pixels = inputs["pixel_values_videos"].clone()
            pixels[frame * high * wide : (frame + 1) * high * wide].neg_()
            after = model(**{**inputs, "pixel_values_videos": pixels}).logits[0, -1]
            assert float((after - before).abs().max()) > MATTERS, f"frame {frame} of {frames} is not seen"


def test_2_the_causal_mask_stays_where_nothing_is_merged(case):
    plan = parse(recipe(vit_keep="[100%]", llm_keep="[100%, 100%]"))
    plain = tiny.generate(case.model, case.inputs)
    with Attachment(case.model, plan, shortcut=False):
        kept = tiny.generate(case.model, case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


def test_2_no_token_sees_a_later_one_where_something_is_merged(case):
    text, picture = case.maker.text(9), case.maker.picture()
    row = tiny.Row([case.maker.text(4), picture, text])
    other = swapped(row, 2, torch.cat([text[:-1], (text[-1:] + 7) % 70 + 3]))
    # Tokens are chosen by the last query, so the plan is one whose choice does not depend on it.
    plan = recipe(llm_layers="[]", llm_keep="[]") + " | illava_v2(layer=2, keep=0.5, mode=2)"
    with torch.no_grad(), foveate.attach(case.model, plan):
        one, two = (case.model(**case.maker.inputs([which])).logits[0] for which in (row, other))
    assert torch.equal(one[-9:-1], two[-9:-1])
    assert not torch.equal(one[-1], two[-1])


@pytest.mark.pairs
@pytest.mark.parametrize("variant", ["v1", "v2", "partition"])
def test_3_text_between_pictures_is_kept_and_read(case, variant):
    row, plan = case.rows[1], recipe(variant=variant)
    between = (row.pieces[2] + 11) % 70 + 3
    before, after = (case.logits(plan, which) for which in (row, swapped(row, 2, between)))
    assert float((before - after).abs().max()) > MATTERS
    inputs = case.maker.inputs([row])
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        caches = cache_in(case.model(**inputs, use_cache=True))
        alive = alive_columns(attachment.trace, inputs)[-1]
    text = inputs["input_ids"] != tiny.IMAGE
    stored = caches.layers[4].positions(1, torch.device("cpu"))[0].tolist()
    assert set(torch.nonzero(text[0]).flatten().tolist()) <= set(stored)
    assert stored == torch.nonzero(alive[0]).flatten().tolist()


def test_5_survivors_keep_their_own_rotary_positions(case):
    inputs = case.maker.inputs(case.rows[1:2])
    with torch.no_grad(), layer_calls(case.model, 4) as calls:
        case.model(**inputs)
        with foveate.attach(case.model, BOTH) as attachment:
            # Hooks run in order: look behind those of the plan.
            with layer_calls(case.model, 4) as pruned:
                case.model(**inputs)
            alive = alive_columns(attachment.trace, inputs)[-1][0]
    for full, left in zip(calls[0]["position_embeddings"], pruned[0]["position_embeddings"], strict=True):
        expected = full[..., alive, :]
        assert torch.equal(left.expand(expected.shape), expected)
        assert not torch.equal(expected, full[..., : expected.shape[-2], :])


@pytest.mark.parametrize("layers", [[1], [2, 3], [1, 2, 3, 4]])
def test_6_merges_at_several_layers_of_the_llm_all_happen(case, layers):
    plan = recipe(vit_layers="[]", vit_keep="[]", llm_layers=layers, llm_keep=["0.7"] * len(layers)).replace("'", "")
    inputs = case.maker.inputs(case.rows[:1])
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        cache = cache_in(case.model(**inputs, use_cache=True))
        counts = [int(alive.sum()) for alive in alive_columns(attachment.trace, inputs)]
    assert counts == sorted(set(counts), reverse=True) and len(counts) == len(layers)
    width = inputs["input_ids"].shape[1]
    expected = [([width, *counts])[sum(at <= layer for at in layers)] for layer in range(5)]
    assert [layer.keys.shape[2] for layer in cache.layers] == expected
    assert cache.get_seq_length() == width


@pytest.mark.pairs
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", ["v1", "v2", "partition"])
def test_7_rows_of_a_batch_and_their_padding_do_not_meet(case, side, variant):
    with torch.no_grad(), foveate.attach(case.model, recipe(variant=variant)) as attachment:
        inputs = case.maker.inputs(case.rows, side=side)
        together = case.model(**inputs).logits
        chosen = [entry.kept_index.tolist() for entry in attachment.trace]
        alone_chosen = []
        for number, row in enumerate(case.rows):
            alone = case.model(**case.maker.inputs([row])).logits[0, -1]
            if number < 2:  # the third has no picture
                alone_chosen += [entry.kept_index.tolist() for entry in attachment.trace]
            last = int(torch.nonzero(real(inputs)[number]).max())
            torch.testing.assert_close(together[number, last], alone, atol=LOGITS, rtol=0)
    assert chosen == alone_chosen


@pytest.mark.pairs
@pytest.mark.parametrize("length", [1, 14, 30])
def test_8_a_prompt_without_pictures_is_an_exact_no_op(case, length):
    inputs = case.maker.inputs([tiny.Row([case.maker.text(length)])])
    plain = tiny.generate(case.model, inputs)
    with foveate.attach(case.model, BOTH):
        same = tiny.generate(case.model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))


@pytest.mark.parametrize("before", [1, 14, 33])
def test_9_any_text_may_stand_in_front_of_the_pictures(case, before):
    """The program expects pictures at column 14; with several, those behind the first are off by their separators."""
    one, two = case.maker.picture(0), case.maker.picture(1)
    row = tiny.Row([case.maker.text(before), one, case.maker.text(2), two, case.maker.text(3), one, case.maker.text(4)])
    inputs = case.maker.inputs([row])
    with torch.no_grad(), foveate.attach(case.model, BOTH) as attachment:
        case.model(**inputs)
        entries = attachment.trace.media
        text = inputs["input_ids"][0] != tiny.IMAGE
        assert len(entries) == 3
        for alive in alive_columns(attachment.trace, inputs):
            assert bool(alive[0][text].all())
    # The encoder's choice is the picture's own, wherever it stands.
    assert torch.equal(entries[0].kept[0], entries[2].kept[0])
    for entry in entries:
        assert bool((inputs["input_ids"][0][entry.medium.columns] == tiny.IMAGE).all())
        # Shares are of the tokens that arrive (of a crop, then of the picture), separators not among them.
        inside = sum((6 * height * width + 5) // 10 for _, height, width in entry.medium.shape.pieces)
        first = (7 * inside + 5) // 10
        assert list(map(len, entry.kept)) == [inside, first, (6 * first + 5) // 10]


@pytest.mark.pairs
@pytest.mark.parametrize("variant", ["v1", "v2", "partition"])
@pytest.mark.parametrize("name", NAMES)
def test_10_activations_beyond_the_range_of_half_precision_survive(name, variant):
    model = Case(name).model.to(torch.bfloat16)
    case = Case(name)
    inputs = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in case.inputs.items()}

    def enlarge(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        state = state * (2.0**20 / state.abs().amax())
        return (state, *output[1:]) if isinstance(output, tuple) else state

    layers, seen = encoder_layers(model), []
    handles = [encoder_layers(model)[1].register_forward_hook(enlarge), decoder_layers(model)[0].register_forward_hook(enlarge)]
    with torch.no_grad(), foveate.attach(model, recipe(variant=variant)):
        for layer in (layers[2], decoder_layers(model)[1]):
            handles.append(layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max())))
        logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    assert all(2.0**16 < float(largest) < 2.0**21 for largest in seen) and len(seen) == 2
    assert bool(logits.isfinite().all())


def test_10_states_before_a_merge_are_not_written_into(case):
    inputs = case.maker.inputs(case.rows[:1])
    with torch.no_grad():
        plain = case.model(**inputs, output_hidden_states=True).hidden_states
        with foveate.attach(case.model, recipe(vit_layers="[]", vit_keep="[]", llm_layers="[2]", llm_keep="[0.5]")):
            states = case.model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(states[:2], plain[:2], strict=True))


@pytest.mark.pairs
@pytest.mark.parametrize("variant", ["v1", "v2", "partition"])
def test_10_gradients_pass_the_merges(case, variant):
    inputs = case.maker.inputs(case.rows[:1])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, -100)
    with foveate.attach(case.model, recipe(variant=variant)):
        case.model(**inputs, labels=labels).loss.backward()
    first = next(iter(encoder_layers(case.model)[0].parameters())).grad
    case.model.zero_grad(set_to_none=True)
    assert first is not None and bool(first.isfinite().all()) and bool(first.any())


def test_11_a_prefill_does_not_wait_for_the_device_at_every_merge(cases, monkeypatch):
    """The program waits once for each picture and merge, and thousands of times while it sorts.

    Here the host waits for the prompt's layout alone, however many pictures and merges there are.
    """
    # On an accelerator the values of answers are checked once per attachment.
    monkeypatch.setattr(Selection, "check_values", lambda self, token_count: None)
    monkeypatch.setattr(decoder, "_waits", lambda device: True)
    case = cases.setdefault("siglip", Case("siglip"))
    with torch.no_grad(), foveate.attach(case.model, BOTH), weights_on_device(case.model):
        case.model(**on_device(case.inputs), use_cache=True)
        with syncs_of_foveate() as later:
            case.model(**on_device(case.inputs), use_cache=True)
    assert len(later) == 1, later


PARTS = {"both": BOTH, "encoder": recipe(only="vit"), "llm": recipe(only="llm"), "neither": "none"}


@pytest.mark.pairs
@pytest.mark.parametrize("part", PARTS)
def test_13_each_part_runs_alone_and_neither_is_the_plain_model(case, part):
    seen: list[int] = []
    with torch.no_grad(), foveate.attach(case.model, PARTS[part]) as attachment:
        handle = encoder_layers(case.model)[3].register_forward_hook(lambda _, args, output: seen.append(args[0].shape[-2]))
        answer = tiny.generate(case.model, case.inputs)
        handle.remove()
        stages = [] if part == "neither" else attachment.trace.media[0].stages
    with torch.no_grad():
        handle = encoder_layers(case.model)[3].register_forward_hook(lambda _, args, output: seen.append(args[0].shape[-2]))
        plain = tiny.generate(case.model, case.inputs)
        handle.remove()
    inside, behind = part in ("both", "encoder"), part in ("both", "llm")
    assert len(stages) == inside + 2 * behind
    assert (seen[0] < seen[-1]) is inside
    width = case.inputs["input_ids"].shape[1]
    assert (cache_in(answer).layers[4].keys.shape[2] < width) is (inside or behind)
    same = all(torch.equal(a, b) for a, b in zip(answer.logits, plain.logits, strict=True))
    assert same is (part == "neither")
