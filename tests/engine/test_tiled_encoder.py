"""Stages inside encoders whose tokens are laid out anew behind them, against a full-length encoder with masked keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import families
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.engine import choosing
from foveate.engine import encoder as encoder_hooks
from foveate.engine.attachment import Attachment
from foveate.errors import FoveateWarning, InputError, UnsupportedCombination
from foveate.families import llava_next
from foveate.spec import parse
from tests import tiny
from tests.marks import one_and_more
from tests.oracles.dense_reference import dense_reference
from tests.oracles.tiled_encoder import (
    CASES,
    WEIGHTS,
    Case,
    alive_columns,
    check_kept,
    dense_encoder,
    divided,
    kinds_of,
    made_of,
    merges_in_decoder,
    of_kind,
    replays,
    told_in_tokens,
)
from tests.spies import settled_state, state_of

LOGITS = 2e-4  # as the oracles of decoder stages

# Counts are of patches of each tile.
PLANS = (
    "illava_v1(site=vision, layer=1, keep=0.5)",
    "illava_v1(site=vision, layer=1, keep=30) | illava_v1(site=vision, layer=2, keep=21) "
    "| illava_v1(site=vision, layer=3, keep=14)",
    "illava_v2(site=vision, layer=2, keep=0.4, recycle=0.3)",
    "partition(site=vision, layer=1, keep=0.6) | partition(site=vision, layer=3, keep=0.5)",
    "tome(site=vision, layer=0, keep=0.3)",
    "random(site=vision, layer=2, keep=0.1)",
    "random(site=vision, layer=2, keep=0.97)",
    "illava_v1(site=vision, layer=2, keep=0.6) | illava_v1(layer=2, keep=0.5)",
    "partition(site=vision, layer=2, keep=0.6) | random(site=pre_llm, keep=0.7) | fastv(layer=2, keep=0.5)",
)


# Attention weighs how many patches a token stands for.
WEIGHED = (
    "tome(site=vision, layer=1, keep=0.4, proportional=on) | tome(site=vision, layer=3, keep=0.5, proportional=on)",
    "partition(site=vision, layer=1, keep=0.6) | tome(site=vision, layer=2, keep=0.5, proportional=on) "
    "| partition(site=vision, layer=3, keep=0.5)",
)
# Between the attention and the MLP of the block below.
MIDDLE = (
    "illava_v1(site=vision, layer=1, point=mid, keep=0.5)",
    "partition(site=vision, layer=1, point=mid, keep=0.6) | illava_v2(site=vision, layer=2, keep=0.7, recycle=0.3) "
    "| tome(site=vision, layer=3, point=mid, keep=0.5)",
    "tome(site=vision, layer=2, point=mid, keep=0.5, proportional=on) | fastv(layer=2, keep=0.5)",
)


@pytest.fixture(scope="module")
def case_of() -> Callable[..., Case]:
    made: dict[tuple[str, ...], Case] = {}

    def find(name: str, backend: str = "sdpa", side: str = "left") -> Case:
        key = (name, backend, side)
        if key not in made:
            made[key] = Case(*key)
        return made[key]

    return find


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Selection, int]]:
    """The answers of methods inside the encoder, in order: layer, answer, patches to choose from."""
    found: list[tuple[int, Selection, int]] = []
    plain = encoder_hooks.ask

    def ask(stage: Any, view: Any, keep: int, check: bool) -> Selection:
        answer = plain(stage, view, keep, check)
        found.append((stage.site.layer, answer, view.token_count))
        return answer

    monkeypatch.setattr(encoder_hooks, "ask", ask)
    return found


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("plan", [*PLANS, *WEIGHED, *MIDDLE])
def test_b_g_a_shorter_encoder_equals_a_masked_one(case_of, asked, plan, name, backend):
    case = case_of(name, backend)
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        pruned = case.model(**case.inputs).logits
        trace = attachment.trace
        calls = replays(case, plan, asked)
        answer = tiny.generate(case.model, case.inputs)
    behind = plan.count("site=vision") - 1
    coverage = torch.ones(case.inputs["input_ids"].shape)
    for kind, call in zip(kinds_of(case), calls, strict=True):
        for entry, matrix in zip(of_kind(trace, kind), made_of(case, kind, trace), strict=True):
            covered = matrix @ call.last.float()
            check_kept(case, entry, matrix, call, entry.kept[behind])
            if case.pooler is not None and kind == "video":
                continue  # divided in front of the projector
            coverage[entry.medium.row, entry.medium.columns] = torch.where(covered > WEIGHTS, covered, 1.0)
    assert all(len(entry.stages) == plan.count("(") for entry in trace)
    alive = alive_columns(case, trace)
    assert not alive[0].all()
    merged = merges_in_decoder(case, trace)
    with torch.no_grad(), dense_encoder(case, calls), divided(case, coverage), dense_reference(case.model, alive, merged):
        reference = case.model(**case.inputs).logits
        uncached = tiny.generate(case.model, case.inputs, use_cache=False)
    everywhere = case.inputs["attention_mask"].bool()
    for columns in alive.values():
        everywhere = everywhere & columns
    assert not pruned.isnan().any()
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert tiny.greatest_difference(answer, uncached) < LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
@pytest.mark.parametrize("plan", [*PLANS[:7], WEIGHED[0], MIDDLE[1]])
def test_the_trace_says_what_each_token_is_made_of(case_of, asked, plan, name):
    case = case_of(name)
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        case.model(**case.inputs)
        trace = attachment.trace
    calls = replays(case, plan, asked)
    lost = 0
    for kind, call in zip(kinds_of(case), calls, strict=True):
        for entry, matrix in zip(of_kind(trace, kind), made_of(case, kind, trace), strict=True):
            for stage, (_, told) in enumerate(entry.stages):
                kept = entry.kept[stage]
                if stage < len(entry.stages) - 1:
                    left = call.alive[list(call.alive)[stage]].flatten().float()
                    assert torch.equal(kept, torch.nonzero(matrix @ left > WEIGHTS).flatten())
                expected = told_in_tokens(matrix, call, stage, kept)
                torch.testing.assert_close(told.to_dense(), expected, atol=WEIGHTS, rtol=0)
                lost += int((expected.sum(1) < 1 - 1e-3).sum())
                if "random" in plan:  # nothing is merged
                    assert torch.equal(told.indices()[1], kept)
    assert "next" not in name or not plan.startswith("tome") or lost, "some tokens took patches of padding in"


@pytest.mark.pairs
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
def test_later_stages_know_how_many_patches_a_token_stands_for(case_of, asked, monkeypatch, name):
    case, plan = case_of(name), "partition(site=vision, layer=1, keep=0.4) | random(site=pre_llm, keep=0.5)"
    views: dict[int, TokenView] = {}
    plain = choosing.ask

    def ask(stage: Any, view: TokenView, keep: int, check: bool) -> Selection:
        answer = plain(stage, view, keep, check)
        views[id(answer)] = view
        return answer

    monkeypatch.setattr(choosing, "ask", ask)
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        case.model(**case.inputs)
        trace = attachment.trace
    expected: dict[int, Tensor] = {}
    for kind, call in zip(kinds_of(case), replays(case, plan, asked), strict=True):
        patches = (call.whole(0) > 0).sum(1).float()
        for entry, matrix in zip(of_kind(trace, kind), made_of(case, kind, trace), strict=True):
            expected[trace.media.index(entry)] = (matrix @ patches)[entry.kept[0]]
    records = [record for record in trace._records if "pre_llm" in record.stage]
    assert len(records) == len(trace)
    for record in records:
        sizes = views[id(record.selection)].sizes[record.group]
        torch.testing.assert_close(sizes, expected[int(record.owner[0])], atol=WEIGHTS, rtol=WEIGHTS)


@pytest.mark.pairs
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("how", ["", ", proportional=on", ", point=mid"])
def test_a_keeping_everything_is_bit_identical(case_of, name, shortcut, how):
    case = case_of(name)
    plan = parse(f"random(site=vision, layer=1, keep=100%) | tome(site=vision, layer=2, keep=100%{how})")
    plain = tiny.generate(case.model, case.inputs)
    with Attachment(case.model, plan, shortcut=shortcut) as attachment:
        kept = tiny.generate(case.model, case.inputs)
        for entry in attachment.trace:
            everything = torch.eye(entry.medium.shape.grid_tokens)
            assert all(torch.allclose(told.to_dense(), everything) for _, told in entry.stages)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.pairs
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("plan", [*PLANS, WEIGHED[0], MIDDLE[1]])
def test_c_a_row_in_company_equals_the_row_alone(case_of, plan, name, side):
    case = case_of(name, side=side)
    with torch.no_grad(), foveate.attach(case.model, plan):
        together = case.model(**case.inputs).logits
        for number, row in enumerate(case.rows):
            alone = case.model(**case.maker.inputs([row])).logits[0]
            real = case.inputs["attention_mask"][number].bool()
            torch.testing.assert_close(together[number, real][-1], alone[-1], atol=LOGITS, rtol=0)


@pytest.mark.pairs
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
@pytest.mark.parametrize("plan", [PLANS[1], PLANS[-1]])
def test_d_a_cached_answer_equals_an_uncached_one(case_of, plan, name):
    case = case_of(name)
    with foveate.attach(case.model, plan) as attachment:
        cached = tiny.generate(case.model, case.inputs)
        kept = [entry.kept for entry in attachment.trace]
        inside = plan.count("site=vision")
        uncached = tiny.generate(case.model, case.inputs, use_cache=False, tokens=1)
        again = [entry.kept for entry in attachment.trace]
    assert tiny.greatest_difference(tiny.generate(case.model, case.inputs), cached) > 0
    torch.testing.assert_close(cached.logits[0], uncached.logits[0], atol=LOGITS, rtol=0)
    for one, other in zip(kept, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:inside], other[:inside], strict=True))


@pytest.mark.pairs
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
def test_d_steps_without_a_cache_know_what_the_encoder_left(case_of, name):
    case = case_of(name)
    with foveate.attach(case.model, PLANS[1]) as attachment:
        cached, uncached = (tiny.generate(case.model, case.inputs, use_cache=use) for use in (True, False))
        assert all(len(entry.stages) == 3 for entry in attachment.trace)
    assert tiny.greatest_difference(cached, uncached) < LOGITS


NO_VIDEO_BEAMS = pytest.mark.since((5, 23), "before, plain LLaVA-NeXT-Video fails on beams where one row has a video")


@pytest.mark.pairs
@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
@pytest.mark.parametrize("name", [pytest.param(n, marks=NO_VIDEO_BEAMS if n == "next-video" else []) for n in CASES])
def test_beams_share_one_encoding(case_of, name):
    case = case_of(name)
    with foveate.attach(case.model, PLANS[3]):
        cached, uncached = (
            case.model.generate(**case.inputs, num_beams=2, max_new_tokens=5, do_sample=False, use_cache=use)
            for use in (True, False)
        )
    assert torch.equal(cached, uncached)


@pytest.mark.pairs
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
def test_f_detaching_leaves_no_trace_and_the_same_answers(case_of, name):
    case = case_of(name)
    plain = tiny.generate(case.model, case.inputs)
    before = settled_state(case.model, case.inputs)
    with foveate.attach(case.model, PLANS[1]):
        tiny.generate(case.model, case.inputs)
    assert state_of(case.model) == before
    after = tiny.generate(case.model, case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))


@pytest.mark.parametrize("name", one_and_more(CASES, 2))
def test_a_text_only_prompt_is_an_exact_no_op(case_of, name):
    case = case_of(name)
    inputs = case.maker.inputs([tiny.Row([case.maker.text(9)])])
    plain = tiny.generate(case.model, inputs)
    with foveate.attach(case.model, PLANS[0]):
        same = tiny.generate(case.model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))


@pytest.mark.since((5, 23), "before, transformers itself answers wrongly when a chunked prompt holds pictures")
@pytest.mark.parametrize("name", ["next", "onevision"])
def test_chunks_of_a_prompt_share_one_encoding(case_of, name):
    case = case_of(name)
    one, other = case.maker.picture(1), case.maker.picture(0)
    inputs = case.maker.inputs([tiny.Row([case.maker.text(4), one, case.maker.text(3), other, case.maker.text(6)])])
    with foveate.attach(case.model, PLANS[3]) as attachment:
        whole = tiny.generate(case.model, inputs)
        kept = [entry.kept_index for entry in attachment.trace]
        chunked = tiny.generate(case.model, inputs, prefill_chunk_size=4 + len(one.ids) + 2)
        assert [len(entry.stages) for entry in attachment.trace] == [2, 2]
        assert all(torch.equal(a, entry.kept_index) for a, entry in zip(kept, attachment.trace, strict=True))
    assert tiny.greatest_difference(chunked, whole) < LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", one_and_more(CASES, 2))
def test_an_estimate_counts_what_leaves_the_encoder(case_of, name, number):
    case = case_of(name)
    inputs = case.maker.inputs([tiny.Row([case.maker.text(4), case.maker.picture(number), case.maker.text(6)])])
    ((height, width),) = inputs.get("image_sizes", torch.tensor([[24, 24]])).tolist()
    plan = PLANS[1]
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        case.model(**inputs)
        (entry,) = attachment.trace
        cost = foveate.estimate(case.model, plan, images=[(width, height)])
    left = len(entry.kept_index) + len(entry.medium.shape.separators)
    assert cost.visual_tokens_per_layer[0][0] == entry.medium.shape.tokens
    counted = cost.visual_tokens_per_layer[1][0]
    padded = [c for c in entry.medium.shape.canvases if c.box[2:] != (c.tiles[0] * c.tile[0], c.tiles[1] * c.tile[1])]
    # Which patches of a tile with padding stay is known at run time only; shrunk grids keep their share of tokens.
    assert counted == left or (any(not canvas.shrinks for canvas in padded) and abs(counted - left) <= 12)
    prefix, rows = case.path.prefix, entry.medium.shape.encoder_rows
    lengths = [36, 30, 21, 14] + [14] * (len(cost.encoder_tokens[1]) - 4)
    assert cost.encoder_tokens[1] == tuple(rows * (prefix + length) for length in lengths)


@pytest.mark.parametrize("name", one_and_more(CASES, 2))
def test_pictures_that_are_not_in_the_prompt_are_refused(case_of, name):
    case = case_of(name)
    names = ("pixel_values", "pixel_values_images", "image_sizes", "batch_num_images")
    images = {key: case.inputs[key] for key in names if key in case.inputs}
    with torch.no_grad(), foveate.attach(case.model, PLANS[0]) as attachment:
        with attachment.conversation():
            case.model.get_image_features(**images)
            with pytest.raises(InputError, match="encode others outside of the conversation"):
                case.model(**case.inputs)
        assert not case.model(**case.inputs).logits.isnan().any()


@pytest.mark.since((5, 23), "before, models do not take pictures that were encoded before the call")
@pytest.mark.parametrize("name", ["next", "onevision", "onevision-several"])
def test_pictures_that_another_conversation_shortened_are_refused(case_of, name):
    case = case_of(name)
    pixels = {key: case.inputs[key] for key in ("pixel_values", "image_sizes", "batch_num_images") if key in case.inputs}
    prompt = {key: value for key, value in case.inputs.items() if key != "pixel_values"}
    with torch.no_grad(), foveate.attach(case.model, PLANS[0]) as attachment:
        with attachment.conversation():
            encoded = case.model.get_image_features(**pixels)
            kept = case.model(**prompt, mm_encoder_outputs={"image": encoded}).logits
        assert len(attachment.trace.media[0].stages) == 1
        assert torch.equal(kept, case.model(**case.inputs).logits)
        with pytest.raises(InputError, match="shortened by this plan in another conversation"):
            case.model(**prompt, mm_encoder_outputs={"image": encoded})
        plain = case.model.get_image_features(**pixels)
        with pytest.warns(FoveateWarning, match="encoded before this call, without the plan"):
            case.model(**prompt, mm_encoder_outputs={"image": plain})
        assert not attachment.trace.media[0].stages, "they were encoded without the plan"


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_tiles_that_show_padding_alone_make_no_token(case_of, asked, monkeypatch, name):
    monkeypatch.setattr(llava_next, "_TINY_SIZES", ((1, 100),))
    case = case_of(name)
    inputs = case.maker.inputs([tiny.Row([case.maker.text(4), case.maker.picture(0), case.maker.text(6)])])
    with torch.no_grad(), foveate.attach(case.model, PLANS[3]) as attachment:
        pruned = case.model(**inputs).logits
        (entry,) = attachment.trace
    assert [len(answer.kept) for _, answer, _ in asked] == [3, 3]
    assert entry.medium.shape.grids == ((1, 6, 6),)
    assert torch.equal(entry.kept_index, asked[0][1].kept[0][asked[1][1].kept[0]])
    assert not pruned.isnan().any()


def test_only_an_average_of_frames_can_do_without_patches():
    config = families.get("llava_next_video").tiny_config()
    config.spatial_pool_mode = "max"
    model = tiny.tiny_model("llava_next_video", config=config)
    with pytest.raises(UnsupportedCombination, match=r"spatial_pool_mode='max'.*site=pre_llm works"):
        foveate.attach(model, PLANS[0])
    foveate.attach(model, "random(site=pre_llm, keep=0.5)").detach()
