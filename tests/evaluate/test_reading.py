"""Perplexity of a given answer: one pass, token by token, and a plain model under hand-made masks say the same."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.engine.cache_kinds import stored_bytes
from foveate.engine.compat import cache_in
from foveate.errors import InputError
from foveate.evaluate.reading import Reading, Rounds, _fits_one_pass, read_rounds
from tests import tiny
from tests.oracles.gated_reference import gated_reference
from tests.trained import random_predictors

LOSS = 2e-4  # as the oracles' logits
PLANS = (
    "random_gate(layer={l}, keep=0.5, recent=0)",
    "fastv(layer={l}, keep=0.5)",
    "fastv(layer={l}, keep=0.5) | random_gate(layer={l}, keep=0.4, recent=3, first=2)",
    "random(site=pre_llm, keep=0.5) | stride_gate(layer={l}, keep=0.3, recent=0)",
)


def read_answer(model, inputs, answer, attachment, step_by_step=False) -> Reading:
    return read_rounds(model, Rounds(inputs, (answer,)), attachment, step_by_step)[0]


@pytest.fixture(scope="module")
def model_of():
    models = tiny.Models()
    return lambda family, backend="sdpa": models[family, backend]


def prompt(family: str):
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    answer = torch.tensor([11, 4, 9, 9, 30, 5, 17, 8, 21, 6, 2])
    return inputs, answer


@pytest.mark.full
@pytest.mark.parametrize("text", [None, *PLANS])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_pass_gives_what_token_by_token_gives(model_of, family, text):
    model, (inputs, answer) = model_of(family), prompt(family)
    with foveate.attach(model, (text or "none").format(l=tiny.FIRST_LAYER[family])) as attachment:
        plan = attachment if text else None
        at_once, by_token = (read_answer(model, inputs, answer, plan, step_by_step=steps) for steps in (False, True))
    torch.testing.assert_close(at_once.losses, by_token.losses, atol=LOSS, rtol=0)
    assert at_once.perplexity == pytest.approx(by_token.perplexity, rel=LOSS)
    assert (at_once.output_tokens, at_once.kv_bytes) == (by_token.output_tokens, by_token.kv_bytes)
    assert (at_once.stored is not None) == ("gate" in (text or ""))
    assert len(at_once.losses) == len(answer)


@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)
def test_trained_predictors_of_picture_instruction_and_answer_are_read_as_they_decode(model_of, family, tmp_path):
    model, (inputs, answer) = model_of(family), prompt(family)
    folder, _ = random_predictors(tmp_path, model, inputs=inputs, instruct_keep=0.5)
    with foveate.attach(model, f'dynamic_llava(path="{folder}", instruct=on)') as attachment:
        at_once, by_token = (read_answer(model, inputs, answer, attachment, step_by_step=steps) for steps in (False, True))
        assert len(attachment.trace.dropped_text[0])
    torch.testing.assert_close(at_once.losses, by_token.losses, atol=LOSS, rtol=0)
    assert torch.equal(at_once.stored, by_token.stored) and at_once.kv_bytes == by_token.kv_bytes


@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)
def test_a_plan_changes_what_is_read_and_the_plain_reading_is_one_uncached_pass(model_of, family):
    model, (inputs, answer) = model_of(family), prompt(family)
    plain = read_answer(model, inputs, answer, None)
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        longer["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(answer)[None].to(kinds)], dim=1)
    with torch.no_grad():
        logits = model(**longer, use_cache=False).logits[0, length - 1 : -1]
    expected = -logits.double().log_softmax(-1)[torch.arange(len(answer)), answer]
    torch.testing.assert_close(plain.losses, expected, atol=1e-5, rtol=0)
    assert plain.perplexity == pytest.approx(float(expected.mean().exp()), rel=1e-5)
    with foveate.attach(model, PLANS[0].format(l=tiny.FIRST_LAYER[family])) as attachment:
        gated = read_answer(model, inputs, answer, attachment)
    # The first two tokens are predicted before anything rejected is behind them.
    torch.testing.assert_close(gated.losses[:2], plain.losses[:2], atol=1e-5, rtol=0)
    assert (gated.losses[2:] - plain.losses[2:]).abs().max() > 20 * LOSS


def test_a_gated_reading_equals_a_plain_model_that_does_not_see_rejected_columns(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    with foveate.attach(model, "stride_gate(layer=2, keep=0.5, recent=0)") as attachment:
        reading = read_answer(model, inputs, answer, attachment)
    assert reading.stored.tolist() == [number % 2 == 1 for number in range(len(answer) - 1)]
    assert reading.output_tokens == (10, 5)  # 5 stored, the last of which is the newest
    ids = torch.cat([inputs["input_ids"], answer[None, :-1]], dim=1)
    length = inputs["input_ids"].shape[1]
    rejected = torch.cat([torch.zeros(1, length, dtype=torch.bool), ~reading.stored[None]], dim=1)
    longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), gated_reference(model, 2, rejected):
        logits = model(**longer, use_cache=False).logits[0, length - 1 :]
    expected = torch.nn.functional.cross_entropy(logits, answer, reduction="none")
    torch.testing.assert_close(reading.losses.float(), expected, atol=LOSS, rtol=0)


def test_the_newest_token_is_computed_whether_it_is_stored_or_not(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    counts = []
    for size in (10, 11):  # tokens 0, 2, 4, ... are rejected: the newest of 9, but not of 10
        with foveate.attach(model, "stride_gate(layer=2, keep=0.5, recent=0)") as attachment:
            counts.append(read_answer(model, inputs, answer[:size], attachment).output_tokens)
    assert counts == [(9, 5), (10, 5)]


def test_a_gate_with_a_window_computes_everything_in_a_pass_without_a_cache(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    with foveate.attach(model, "stride_gate(layer=2, keep=0.5, recent=3)") as attachment:
        reading = read_answer(model, inputs, answer, attachment)
    assert int(reading.stored.sum()) == 5
    assert reading.output_tokens == (10, 10) and reading.computed_later == 10


def test_bytes_are_those_of_a_cleaned_cache(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    with foveate.attach(model, "random_gate(layer=2, keep=0.5, recent=0)") as attachment:
        reading = read_answer(model, inputs, answer, attachment)
    plain = read_answer(model, inputs, answer, None)
    cache = cache_in(model(**inputs))
    slots = inputs["input_ids"].shape[1]
    per_layer = stored_bytes(cache) // slots // len(cache.layers)
    rejected = int((~reading.stored).sum())
    assert plain.kv_bytes == per_layer * len(cache.layers) * (slots + len(answer) - 1)
    assert plain.kv_bytes - reading.kv_bytes == rejected * per_layer * (len(cache.layers) - 2)


def test_an_answer_of_its_end_alone_and_bad_shapes(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    with foveate.attach(model, "random_gate(layer=2, keep=0.5, recent=0)") as attachment:
        one = read_answer(model, inputs, answer[:1], attachment)
        assert one.output_tokens == (0, 0) and len(one.losses) == 1
        two = {name: torch.cat([value, value]) for name, value in inputs.items()}
        for bad in ((two, answer), (inputs, answer[:0]), (inputs, answer[None])):
            with pytest.raises(InputError, match="one prompt"):
                read_answer(model, *bad, attachment)


def test_what_does_not_fit_one_pass_is_read_token_by_token(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    assert _fits_one_pass(model, inputs, None)
    assert not _fits_one_pass(model, {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}, None)
    with foveate.attach(model, "fastv(layer=2, keep=0.5, effect=mask)") as attachment:
        assert not _fits_one_pass(model, inputs, attachment)
        masked, by_token = (read_answer(model, inputs, answer, attachment, steps) for steps in (False, True))
    assert torch.equal(masked.losses, by_token.losses)
    with foveate.attach(model, "random_gate(layer=2, keep=0.5, recent=0)") as attachment:
        assert _fits_one_pass(model, inputs, attachment)
        text = model.config.get_text_config()
        before, text._attn_implementation = text._attn_implementation, "flash_attention_2"
        try:
            assert not _fits_one_pass(model, inputs, attachment)
        finally:
            text._attn_implementation = before


def test_an_end_token_inside_an_answer_is_refused_token_by_token(model_of):
    model, (inputs, answer) = model_of("llava"), prompt("llava")
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, int(answer[4])
    try:
        with pytest.raises(InputError, match="end token inside"):
            read_answer(model, inputs, answer, None, step_by_step=True)
    finally:
        model.generation_config.eos_token_id = before
