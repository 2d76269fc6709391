"""Trained predictors in the engine: prefill by count and by threshold, answers gated by their own states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.engine.compat import cache_in
from foveate.errors import BudgetError
from tests import tiny
from tests.engine.test_gate import LOGITS, TOKENS, answers, columns_left, extended, prompt, rejected_columns
from tests.oracles.gated_reference import gated_reference
from tests.trained import random_predictors

PLANS = (
    "dynamic_llava(path='{path}', keep=0.4)",
    "dynamic_llava(path='{path}', keep=threshold:0.5)",
    "dynamic_llava(path='{path}', keep=threshold:0.5, text=off)",
    "dynamic_llava(path='{path}', image=off, recent=2)",
    "dynamic_llava(path='{path}', keep=0.4, instruct=on)",
    "dynamic_llava(path='{path}', image=off, text=off, instruct=on)",
    "dynamic_llava(path='{path}', keep=threshold:0.5, instruct=on)",
    "random(site=pre_llm, keep=0.8) | dynamic_llava(path='{path}', keep=0.4)",
)


@pytest.fixture(scope="module")
def trained(model_of, tmp_path_factory) -> Any:
    known: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in known:
            model, inputs = model_of(family), prompt(family)
            for seed in range(30):  # random predictors may keep everything, or one token of each picture
                options = dict(seed=seed, inputs=inputs, layer=tiny.FIRST_LAYER[family], instruct_keep=0.5)
                known[family], _ = random_predictors(tmp_path_factory.mktemp(family), model, **options)
                plan = f"dynamic_llava(path='{known[family]}', keep=threshold:0.5, instruct=on)"
                with foveate.attach(model, plan) as attachment:
                    answers(model, inputs)
                    trace = attachment.trace
                shares = {len(entry.kept_index) / entry.medium.shape.grid_tokens for entry in trace.media}
                dropped, kept = [len(columns) for columns in trace.dropped_text], torch.stack(trace.answer_kept)
                first = len(trace.media[0].kept_index) < trace.media[0].medium.shape.grid_tokens
                mixed = [kept.any() and not kept.all()]
                for options in ("", ", instruct=on"):
                    with foveate.attach(model, f"dynamic_llava(path='{known[family]}', keep=0.4{options})") as attachment:
                        answers(model, inputs)
                        stored = torch.stack(attachment.trace.answer_kept)
                    mixed.append(stored.any() and not stored.all())
                if first and len(shares) > 1 and all(dropped[:2]) and all(mixed):
                    break
        return known[family]

    return get


def stage_texts(plan: Any) -> list[str]:
    return [text for text in str(plan).split(" | ") if not text.startswith(("dynamic_text", "dynamic_instruct"))]


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_b_i_answers_equal_a_masked_plain_model(model_of, trained, family, text, backend):
    model, inputs = model_of(family, backend), prompt(family)
    length = inputs["input_ids"].shape[1]
    with foveate.attach(model, text.format(path=trained(family))) as attachment:
        answer, trace = answers(model, inputs), attachment.trace
        alive = columns_left(trace, stage_texts(attachment.plan), length, 3) if "image=off" not in text else {}
        kept = trace.answer_kept
        if "instruct=on" in text:
            layer = tiny.FIRST_LAYER[family]
            alive.setdefault(layer, torch.ones(3, length, dtype=torch.bool))
            for row, columns in enumerate(trace.dropped_text):
                alive[layer][row, columns] = False
            assert [len(columns) > 0 for columns in trace.dropped_text] == [True, True, False], "text alone stays whole"
            assert alive[layer][:, -1].all()
    rejected = rejected_columns(trace, length) if kept else torch.zeros(3, 1, dtype=torch.bool)
    assert not kept or (rejected.any() and torch.stack(kept).any())
    if "threshold" in text:
        assert len({len(entry.kept_index) / entry.medium.shape.grid_tokens for entry in trace.media}) > 1, "counts must differ"
    recent = 2 if "recent" in text else 1
    with torch.no_grad(), gated_reference(model, tiny.FIRST_LAYER[family], rejected, recent, alive):
        logits = model(**extended(inputs, answer.sequences, family), use_cache=False).logits
    for step in range(TOKENS):
        torch.testing.assert_close(answer.logits[step], logits[:, length - 1 + step], atol=LOGITS, rtol=0)


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_c_d_rows_alone_and_answers_without_a_cache_are_the_same(model_of, trained, family, text):
    model, maker = model_of(family), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows)
    with foveate.attach(model, text.format(path=trained(family))):
        together = answers(model, inputs)
        uncached = answers(model, inputs, use_cache=False)
        assert tiny.greatest_difference(together, uncached) < LOGITS
        for number, row in enumerate(rows):
            alone = answers(model, maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_predictors_that_keep_everything_change_nothing(model_of, trained, family):
    model, inputs = model_of(family), prompt(family)
    plain = answers(model, inputs)
    with foveate.attach(model, f"dynamic_llava(path='{trained(family)}', keep=100%, bias=1000000000.0)") as attachment:
        kept = answers(model, inputs)
        assert torch.stack(attachment.trace.answer_kept).all()
    assert tiny.greatest_difference(plain, kept) < 1e-5
    assert torch.equal(plain.sequences, kept.sequences)


def test_right_padding_is_left_where_it_is(model_of, trained):
    model, maker = model_of("llava"), tiny.Maker("llava")
    rows = tiny.ragged_rows(maker, 3)
    with torch.no_grad(), foveate.attach(model, PLANS[2].format(path=trained("llava"))):
        left, right = maker.inputs(rows, "left"), maker.inputs(rows, "right")
        logits = {side: model(**inputs).logits for side, inputs in (("left", left), ("right", right))}
    for row in range(3):
        real = int(right["attention_mask"][row].sum())
        assert torch.equal(left["input_ids"][row, -real:], right["input_ids"][row, :real])
        torch.testing.assert_close(logits["left"][row, -real:], logits["right"][row, :real], atol=LOGITS, rtol=0)


def test_cache_lengths_follow_the_picture(model_of, trained):
    """Dynamic-LLaVA's invariant (e): full below the layer; survivors and stored answers at and above it."""
    model, inputs = model_of("llava"), prompt("llava", batch=1)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), foveate.attach(model, PLANS[1].format(path=trained("llava"))) as attachment:
        cache = cache_in(model(**inputs, use_cache=True))
        entry = attachment.trace.media[0]
        gone = entry.medium.shape.grid_tokens - len(entry.kept_index)
    assert gone > 0
    slots = [layer.keys.shape[-2] for layer in cache.layers]
    first = tiny.FIRST_LAYER["llava"]
    assert slots == [length] * first + [length - gone] * (len(slots) - first)


def test_a_threshold_has_no_estimate_and_says_so(model_of, trained):
    model, inputs = model_of("llava"), prompt("llava")
    with foveate.attach(model, PLANS[1].format(path=trained("llava"))) as attachment:
        answers(model, inputs)
        report = str(attachment.report())
        assert "not computed: more than shapes decide it" in report
        assert "tokens stored after the gate" in report
        assert str(attachment)
    with pytest.raises(BudgetError, match="follows the picture"):
        foveate.estimate(model, PLANS[1].format(path=trained("llava")), visual_tokens=36)
    with pytest.raises(BudgetError, match="cannot keep by threshold"):
        foveate.attach(model, "fastv(layer=2, keep=threshold:0.5)")


def test_the_predictor_takes_the_number_format_of_the_states(trained):
    model = tiny.tiny_model("llava").to(torch.bfloat16)
    inputs: dict[str, Tensor] = prompt("llava")
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with foveate.attach(model, PLANS[0].format(path=trained("llava"))) as attachment:
        answers(model, inputs)
        assert {p.dtype for module in attachment.modules.values() for p in module.parameters()} == {torch.bfloat16}
