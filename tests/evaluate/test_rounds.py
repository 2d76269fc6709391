"""Several rounds behind each other: each answer is read on the cache that the rounds before it left, as in a chat."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import foveate
from foveate.engine.cache_kinds import bytes_of_columns, stored_bytes
from foveate.engine.compat import cache_in
from foveate.errors import FoveateError, InputError
from foveate.evaluate.generation import Generation, Sample, evaluate, summarize
from foveate.evaluate.overlap import OverlapScore
from foveate.evaluate.reading import Rounds, read_rounds
from tests import tiny
from tests.oracles.gated_reference import gated_reference
from tests.spies import alive_columns
from tests.trained import random_predictors

LOSS = 2e-4  # as the oracles' logits
PLANS = (
    None,
    "random_gate(layer={l}, keep=0.5, recent=0)",
    "fastv(layer={l}, keep=0.5)",
    "fastv(layer={l}, keep=0.5) | stride_gate(layer={l}, keep=0.4, recent=3, first=2)",
)
END = 2


@pytest.fixture(scope="module")
def model_of():
    models = tiny.Models()
    return lambda family, backend="sdpa": models[family, backend]


def chat(family: str, sizes: tuple[int, ...] = (9, 1, 7)) -> Rounds:
    """A picture and several rounds; the end token of an answer begins the next turn."""
    maker = tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(6)])])
    answers = tuple(torch.cat([maker.text(size - 1), torch.tensor([END])]) for size in sizes)
    turns = tuple(torch.cat([torch.tensor([END]), maker.text(3 + number)]) for number in range(len(sizes) - 1))
    return Rounds(inputs, answers, turns)


def whole(family: str, rounds: Rounds) -> tuple[dict[str, Tensor], list[slice]]:
    """The conversation as one prompt without its last token, and where each answer is predicted."""
    parts, places = [rounds.inputs["input_ids"][0]], []
    for number, answer in enumerate(rounds.answers):
        start = sum(map(len, parts))
        places.append(slice(start - 1, start - 1 + len(answer)))
        parts += [answer[:-1], *rounds.turns[number : number + 1]]
    ids = torch.cat(parts)[None]
    media = {name: value for name, value in rounds.inputs.items() if value.shape != rounds.inputs["input_ids"].shape}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media, **tiny.Maker(family).side_inputs(ids)}, places


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_pass_for_each_round_gives_what_token_by_token_gives(model_of, family, text):
    model, rounds = model_of(family), chat(family)
    with foveate.attach(model, (text or "none").format(l=tiny.FIRST_LAYER[family])) as attachment:
        plan = attachment if text else None
        at_once, by_token = (read_rounds(model, rounds, plan, step_by_step=steps) for steps in (False, True))
    assert [len(one.losses) for one in at_once] == [9, 1, 7]
    for one, other in zip(at_once, by_token, strict=True):
        torch.testing.assert_close(one.losses, other.losses, atol=LOSS, rtol=0)
        assert (one.output_tokens, one.kv_bytes, one.answer_kv_bytes) == (
            other.output_tokens,
            other.kv_bytes,
            other.answer_kv_bytes,
        )


@pytest.mark.pairs
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)
def test_every_round_equals_one_uncached_pass_of_a_plain_model_under_masks_made_by_hand(model_of, family, text):
    model, rounds = model_of(family), chat(family)
    layer = tiny.FIRST_LAYER[family]
    with foveate.attach(model, (text or "none").format(l=layer)) as attachment:
        readings = read_rounds(model, Rounds(rounds.inputs, rounds.answers[:1]), attachment) if text else []
        alive = {layer: alive_columns(attachment.trace, rounds.inputs)[0]} if "fastv" in (text or "") else {}
        readings = read_rounds(model, rounds, attachment if text else None)
    inputs, places = whole(family, rounds)
    rejected = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for reading, place in zip(readings, places, strict=True):
        if reading.stored is not None:
            rejected[0, place.start + 1 : place.stop] = ~reading.stored
    assert rejected.any() == ("gate" in (text or ""))
    with torch.no_grad(), gated_reference(model, layer, rejected, 3 if "recent=3" in (text or "") else 1, alive):
        logits = model(**inputs, use_cache=False).logits[0]
    for reading, place, answer in zip(readings, places, rounds.answers, strict=True):
        expected = torch.nn.functional.cross_entropy(logits[place], answer, reduction="none")
        torch.testing.assert_close(reading.losses.float(), expected, atol=LOSS, rtol=0)


def test_a_trained_gate_judges_each_answer(model_of, tmp_path):
    model, rounds = model_of("llava"), chat("llava", (9, 9))
    folder, _ = random_predictors(tmp_path, model, inputs=rounds.inputs, instruct_keep=0.5)
    with foveate.attach(model, f'dynamic_llava(path="{folder}", instruct=on)') as attachment:
        at_once, by_token = (read_rounds(model, rounds, attachment, step_by_step=steps) for steps in (False, True))
    for one, other in zip(at_once, by_token, strict=True):
        torch.testing.assert_close(one.losses, other.losses, atol=LOSS, rtol=0)
        assert torch.equal(one.stored, other.stored) and len(one.stored) == 8
    assert not all(one.stored.all() for one in at_once)


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_asking_in_between_changes_nothing_and_finds_what_was_read(model_of, family, steps):
    model, rounds, asked = model_of(family), chat(family), []
    plan = PLANS[3].format(l=tiny.FIRST_LAYER[family])

    def ask(inputs):
        asked.append(
            model.generate(**inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
        )

    with foveate.attach(model, plan) as attachment:
        silent = read_rounds(model, rounds, attachment, steps)
        readings = read_rounds(model, rounds, attachment, steps, ask)
    assert len(asked) == 3
    for one, other, out, answer in zip(readings, silent, asked, rounds.answers, strict=True):
        assert torch.equal(one.losses, other.losses) and one.kv_bytes == other.kv_bytes
        # The first token of an answer is predicted from the same columns, generated or read.
        loss = torch.nn.functional.cross_entropy(out.logits[0], answer[:1])
        assert float(one.losses[0]) == pytest.approx(float(loss), abs=LOSS)


def test_bytes_of_the_answers_alone_by_hand(model_of):
    model, rounds = model_of("llava"), chat("llava")
    layers, slot = model.config.text_config.num_hidden_layers, 2 * 2 * 8 * 4  # K and V, 2 heads of 8, fp32
    plain = read_rounds(model, rounds, None)
    assert [one.answer_kv_bytes for one in plain] == [slot * layers * read for read in (8, 8, 14)]
    prompt, turns = rounds.inputs["input_ids"].shape[1], [0, 4, 9]
    assert [one.kv_bytes for one in plain] == [
        slot * layers * (prompt + turn + read) for turn, read in zip(turns, (8, 8, 14), strict=True)
    ]
    with foveate.attach(model, "fastv(layer=2, keep=0.5) | stride_gate(layer=2, keep=0.5, recent=0)") as attachment:
        gated = read_rounds(model, rounds, attachment)
    assert [one.answer_kv_bytes for one in gated] == [
        slot * (2 * read + (layers - 2) * stored) for read, stored in ((8, 4), (8, 4), (14, 7))
    ]


def test_bytes_of_columns_of_other_caches(model_of):
    from transformers import StaticCache

    model, inputs = model_of("gemma3"), chat("gemma3").inputs
    with torch.no_grad():
        cache = cache_in(model(**inputs))
        length = inputs["input_ids"].shape[1]
        windows = [layer.keys.shape[-2] for layer in cache.layers]
        per_slot = stored_bytes(cache) // sum(windows)
        assert bytes_of_columns(cache, torch.ones(length, dtype=torch.bool)) == stored_bytes(cache)
        # A sliding layer let the first columns go.
        early = torch.zeros(length, dtype=torch.bool)
        early[: length // 2] = True
        expected = sum(max(0, width - (length - length // 2)) for width in windows) * per_slot
        assert min(windows) < length and bytes_of_columns(cache, early) == expected
    static = StaticCache(config=model.config, max_cache_len=64)
    assert bytes_of_columns(static, torch.ones(4, dtype=torch.bool)) is None


def test_a_sample_of_several_rounds_is_scored_as_the_mean_of_them(model_of):
    model, rounds = model_of("llava"), chat("llava", (9, 6))
    gate = "stride_gate(layer=2, keep=0.5, recent=0)"
    generation = Generation(
        lambda ids: " ".join(map(str, ids.tolist())), OverlapScore("length", lambda a, b: len(a) + len(b)), 5
    )
    sample = Sample("chat", ("a", "bb"), lambda: rounds)
    scores = evaluate(model, [sample], [gate], generation)
    (plain,), (gated,) = scores["none"], scores[gate]
    with foveate.attach(model, gate) as attachment:
        first, second = read_rounds(model, rounds, attachment)
    assert gated.perplexity == (first.perplexity + second.perplexity) / 2
    assert plain.output_tokens == (13, 13)
    # 4 of 8 are stored, then 2 of 5, behind which the newest is computed too.
    assert gated.output_tokens == (13, 4 + 3)
    assert (gated.kv_bytes, gated.output_kv_bytes) == (second.kv_bytes, second.answer_kv_bytes)
    inputs, _ = whole("llava", rounds)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    text = inputs["input_ids"].shape[1] - visual
    cost = foveate.estimate(model, "none", [(64, 64)], text_tokens=text, max_new_tokens=0)
    assert plain.last_pass_flops == cost.llm_prefill_flops.plan > gated.last_pass_flops
    said = gated.generated
    assert (
        len(said.answers) == 2 and said.overlap == sum(len(text) + n for text, n in zip(said.answers, (1, 2), strict=True)) / 2
    )
    assert said.output_tokens[0] == 8 and said.output_tokens[1] < 8
    assert said.kv_bytes < said.kv_bytes_held
    row = summarize(scores)[1]
    assert row.output_kv_share == gated.output_kv_bytes / plain.output_kv_bytes < row.kv_share


def test_a_later_round_is_not_what_it_would_be_on_its_own(model_of):
    model, rounds = model_of("llava"), chat("llava", (9, 9))
    with foveate.attach(model, "stride_gate(layer=2, keep=0.3, recent=0)") as attachment:
        second = read_rounds(model, rounds, attachment)[1]
        longer = torch.cat([rounds.inputs["input_ids"][0], rounds.answers[0][:-1], rounds.turns[0]])[None]
        inputs = {**rounds.inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
        (alone,) = read_rounds(model, Rounds(inputs, (rounds.answers[1],)), attachment)
    assert (second.losses - alone.losses).abs().max() > 20 * LOSS  # the first answer was gated too
    assert second.kv_bytes < alone.kv_bytes


def test_what_cannot_be_read_is_refused(model_of):
    model, rounds = model_of("llava"), chat("llava", (4, 4))
    for bad in (
        Rounds(rounds.inputs, rounds.answers),
        Rounds(rounds.inputs, rounds.answers[:1], rounds.turns),
        Rounds(rounds.inputs, rounds.answers, (torch.zeros(0, dtype=torch.long),)),
    ):
        with pytest.raises(InputError, match="need the ids of a turn"):
            read_rounds(model, bad, None)
    odd = {**rounds.inputs, "segment_ids": torch.zeros_like(rounds.inputs["input_ids"])}
    with pytest.raises(InputError, match="segment_ids for each column"):
        read_rounds(_Deaf(model), Rounds(odd, rounds.answers, rounds.turns), None)
    with (
        foveate.attach(model, "fastv(layer=2, keep=0.5, effect=mask)") as attachment,
        pytest.raises(FoveateError, match="mask"),
    ):
        read_rounds(model, rounds, attachment)


class _Deaf:
    """A model whose generate() overlooks an input that it does not know."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def generate(self, segment_ids=None, **options):
        return self.model.generate(**options)
