"""Defects of the program of Dynamic-LLaVA's authors, one test each: what goes wrong there must go right here.

Known of their code: rows that store less attend to zeros (1), padding is forgotten behind layer 0 (2), a new turn of a batch
loses tokens (3), decoding without a cache repeats a token and remembers the last prompt (4), beams lose the lengths and the
pictures' sparsity (5), other attention backends ignore the gate (6), one picture per row and none without (7), text alone
does not train and validation is impossible (8), predictors cannot be trained alone and LoRA hits the wrong modules (9). In
their data, metrics and benchmarks, which have no part in an engine: samples without pictures are skipped (10), means divide
by skipped samples and turns do not end (11; how turns end: tests/convert/test_processor.py), peaks of memory are reset before
they are read (12).

Proved elsewhere: answers against a masked plain model, rows alone, no cache (test_gate, test_learned, test_gate_backends),
Eq. 7 and its gradients (test_soft), masked teacher forcing equals dropping (test_soft).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate.core.selection import Selection
from foveate.engine import gate as gate_module
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import UnsupportedCombination
from tests import fake_backends, tiny
from tests.engine.test_gate import LOGITS, TOKENS, answers
from tests.marks import one_and_more
from tests.syncs import on_device, syncs_of_foveate, weights_on_device
from tests.trained import random_predictors

PLAN = "dynamic_llava(path='{path}', keep=0.4)"
TEXT_ONLY = "dynamic_llava(path='{path}', image=off)"
KEPT = 14  # of the 36 tokens of each picture
LOSS = 1e-4
MATTERS = 10 * LOSS  # what a decision must change at least


def rows() -> tuple[tiny.Maker, list[tiny.Row]]:
    maker = tiny.Maker("llava")
    return maker, tiny.ragged_rows(maker, 3)


@pytest.fixture(scope="module")
def path(model_of: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Predictors under which the rows of a batch store different numbers of tokens."""
    model, (maker, made) = model_of("llava"), rows()
    inputs = maker.inputs(made)
    for seed in range(40):
        found, _ = random_predictors(tmp_path_factory.mktemp("predictors"), model, seed=seed, inputs=inputs)
        with foveate.attach(model, PLAN.format(path=found)) as attachment:
            answers(model, inputs)
            counts = {int(kept.sum()) for kept in attachment.trace.answer_kept}
        if len(counts) == 3 and min(counts) > 0 and max(counts) < TOKENS - 1:
            return found
    raise AssertionError("no seed gives rows of three lengths")


@pytest.mark.parametrize("clean_every", one_and_more([2, 3, 64]))
def test_1_a_row_that_stores_less_sees_no_filler(model_of, path, monkeypatch, clean_every):
    """There a ragged cache is filled with zeros that no mask hides, and a zero key has weight exp(0)."""
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", clean_every)
    model, (maker, made) = model_of("llava"), rows()
    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        together = answers(model, maker.inputs(made))
        assert len({int(kept.sum()) for kept in attachment.trace.answer_kept}) == 3
        for number, row in enumerate(made):
            alone = answers(model, maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("plan", [PLAN, "dynamic_llava(path='{path}', keep=100%, bias=1000000000.0)"])
def test_2_what_stands_in_the_padding_reaches_no_layer(model_of, path, plan, side):
    """There the padding mask is dropped behind layer 0, even when nothing is pruned."""
    model, (maker, made) = model_of("llava"), rows()
    inputs = maker.inputs(made, side)
    real = inputs["attention_mask"].bool()
    other = {**inputs, "input_ids": torch.where(real, inputs["input_ids"], 77)}
    assert not real.all()
    with torch.no_grad(), foveate.attach(model, plan.format(path=path)):
        first, second = (model(**some).logits for some in (inputs, other))
    assert torch.equal(first[real], second[real])


@pytest.mark.full
@pytest.mark.parametrize("clean_every", [2, 64])
def test_3_a_second_turn_of_a_ragged_batch_loses_nothing(model_of, path, monkeypatch, clean_every):
    """There the keys of a new prompt are appended behind the filler and cut off at the next step."""
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", clean_every)
    model, (maker, made) = model_of("llava"), rows()
    question = maker.text(6)

    def two_turns(inputs: dict[str, Tensor]) -> list[Tensor]:
        first = answers(model, inputs)
        ids = torch.cat([first.sequences, question.expand(len(first.sequences), -1)], dim=1)
        new = torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1], dtype=torch.long)
        mask = torch.cat([inputs["attention_mask"], new], dim=1)
        second = answers(model, {"input_ids": ids, "attention_mask": mask}, **{CACHE: cache_in(first)})
        return [*first.logits, *second.logits]

    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        together = two_turns(maker.inputs(made))
        assert len({int(kept.sum()) for kept in attachment.trace.answer_kept}) > 1
        for number, row in enumerate(made):
            for ours, alone in zip(together, two_turns(maker.inputs([row])), strict=True):
                torch.testing.assert_close(ours[number], alone[0], atol=LOGITS, rtol=0)


def test_4_prompts_one_after_another_without_a_cache_know_nothing_of_each_other(model_of, path):
    """There the first step repeats the prompt's last token, and where the answer begins is remembered from the first prompt."""
    model, (maker, made) = model_of("llava"), rows()
    prompts = [maker.inputs([row]) for row in (made[1], made[0], made[2])]
    assert len({some["input_ids"].shape[1] for some in prompts}) == 3
    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        for inputs in prompts:
            uncached = answers(model, inputs, use_cache=False)
            decided = attachment.trace.answer_kept
            cached = answers(model, inputs)
            assert tiny.greatest_difference(cached, uncached) < LOGITS
            assert torch.equal(decided[0], attachment.trace.answer_kept[0])


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
def test_5_beams_keep_pictures_sparse_and_their_own_answers(model_of, path):
    """There `num_beams` > 1 silently turns the pictures' predictor off and loses the rows' lengths."""
    model, (maker, made) = model_of("llava"), rows()
    inputs = maker.inputs(made)
    options: dict[str, Any] = dict(num_beams=3, max_new_tokens=8, do_sample=False)
    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        cached = model.generate(**inputs, **options)
        assert [len(entry.kept_index) for entry in attachment.trace.media] == [KEPT] * 9
        uncached = model.generate(**inputs, **options, use_cache=False)
        assert torch.equal(cached, uncached)
        for number, row in enumerate(made):
            alone = model.generate(**maker.inputs([row]), **options)
            assert torch.equal(cached[number, -8:], alone[0, -8:])


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", fake_backends.FLASH, fake_backends.FLEX])
def test_6_every_backend_gates(model_of, path, backend):
    """There only SDPA does: flash ignores the decisions, eager breaks behind the pruning."""
    maker, made = rows()
    inputs = maker.inputs(made)
    fake_backends.register()
    model = tiny.tiny_model("llava", "eager" if backend == "eager" else "sdpa")
    if backend != "eager":
        fake_backends.use(model, backend)
    with foveate.attach(model_of("llava"), PLAN.format(path=path)) as attachment:
        expected, decided = answers(model_of("llava"), inputs), attachment.trace.answer_kept
    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        found = answers(model, inputs)
        assert all(torch.equal(a, b) for a, b in zip(decided, attachment.trace.answer_kept, strict=True))
        assert [len(entry.kept_index) for entry in attachment.trace.media] == [KEPT] * 3
        with pytest.raises(UnsupportedCombination, match="output_attentions"), torch.no_grad():
            model(**inputs, output_attentions=True)
    assert tiny.greatest_difference(expected, found) < LOGITS


def test_7_several_pictures_anywhere_and_none(model_of, path):
    """There a row has one picture, at the same place in all rows, and a row without any turns everything off."""
    model, maker = model_of("llava"), tiny.Maker("llava")
    made = [
        tiny.Row([maker.text(9)]),
        tiny.Row([maker.picture(), maker.text(4)]),
        tiny.Row([maker.text(2), maker.picture(), maker.picture(), maker.text(3), maker.picture(), maker.text(6)]),
    ]
    inputs = maker.inputs(made)
    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        together, trace = answers(model, inputs), attachment.trace
        assert [(entry.medium.row, len(entry.kept_index)) for entry in trace.media] == [(1, KEPT), *[(2, KEPT)] * 3]
        assert len({tuple(entry.kept_index.tolist()) for entry in trace.media}) == 4, "each picture is judged by itself"
        assert all(len(kept) == TOKENS - 1 for kept in trace.answer_kept) and not trace.answer_kept[0].all()
        for number, row in enumerate(made):
            alone = answers(model, maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


def labelled(pictures: bool = True) -> dict[str, Tensor]:
    """Training rows whose answers follow text; the first two have pictures, or none has."""
    maker = tiny.Maker("llava")
    if pictures:
        made = [tiny.Row([*row.pieces, maker.text(9)]) for row in tiny.ragged_rows(maker, 3)]
    else:
        made = [tiny.Row([maker.text(length)]) for length in (14, 11, 16)]
    inputs = maker.inputs(made, "right")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate((9, 7, 8)):
        answer = torch.nonzero(inputs["attention_mask"][row]).flatten()[-length:]
        labels[row, answer] = inputs["input_ids"][row, answer]
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("pictures", [True, False])
def test_8_the_answer_s_predictor_works_and_trains_without_the_picture_s(path, pictures):
    """There it crashes, and in training its policy never reaches attention."""
    inputs = labelled(pictures)
    model = tiny.tiny_model("llava")
    with torch.no_grad():
        plain = float(model(**inputs).loss)
    with torch.no_grad(), foveate.attach(model, TEXT_ONLY.format(path=path)) as attachment:
        gated = float(model(**inputs).loss)
        assert not all(kept.all() for kept in attachment.trace.answer_kept)
        assert all(len(entry.kept_index) == 36 for entry in attachment.trace.media)
    assert abs(plain - gated) > MATTERS
    with foveate.attach(model.train(), TEXT_ONLY.format(path=path), mode="soft") as attachment:
        attachment.soft.least_answer = 0
        (module,) = attachment.modules.values()
        module.requires_grad_(True)
        model(**inputs).loss.backward()
        assert not attachment.soft.image_shares and len(attachment.soft.text_shares) == 3
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in module.parameters())


@pytest.mark.parametrize("text", [PLAN, TEXT_ONLY])
def test_8_validation_has_a_loss(model_of, path, text):
    """There labels and logits differ in length as soon as something is pruned. Labels behind dropped tokens stay in place."""
    model, inputs = model_of("llava"), labelled()
    with torch.no_grad():
        plain = float(model(**inputs).loss)
        with foveate.attach(model, text.format(path=path)):
            dropped = float(model(**inputs).loss)
        with foveate.attach(model, text.format(path=path), mode="soft"):
            masked = float(model(**inputs).loss)
    assert dropped == pytest.approx(masked, abs=LOSS)
    assert abs(dropped - plain) > MATTERS


def test_9_predictors_train_alone(path):
    """There they are modules of the model: freezing it freezes them, and LoRA's suffixes hit their layers' numbers."""
    model = tiny.tiny_model("llava").train().requires_grad_(False)
    names = {name for name, _ in model.named_modules()}
    inputs = labelled()
    with foveate.attach(model, PLAN.format(path=path), mode="soft") as attachment:
        assert {name for name, _ in model.named_modules()} == names, "nothing of ours is a part of the model"
        attachment.soft.least_answer = 0
        ours = [p for module in attachment.modules.values() for p in module.requires_grad_(True).train().parameters()]
        before = [parameter.detach().clone() for parameter in ours]
        optimizer = torch.optim.SGD(ours, lr=0.01)
        torch.manual_seed(0)
        model(**inputs).loss.backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, ours, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_validates_and_trains(path, dtype):
    exact = tiny.tiny_model("llava")
    model = tiny.tiny_model("llava").to(dtype)
    inputs = labelled()
    half = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
    prompt = {name: value for name, value in half.items() if name != "labels"}
    with foveate.attach(model, PLAN.format(path=path)) as attachment:
        answer = answers(model, {**prompt, **left(prompt)})
        assert all(bool(logits.isfinite().all()) for logits in answer.logits)
        assert [len(entry.kept_index) for entry in attachment.trace.media] == [KEPT] * 3
    losses = []
    for one, some in ((exact, inputs), (model, half)):
        with foveate.attach(one.train(), PLAN.format(path=path), mode="soft") as attachment:
            attachment.soft.least_answer = 100
            torch.manual_seed(0)
            attachment.soft.tau = 1.0
            modules = [module.requires_grad_(True).train() for module in attachment.modules.values()]
            loss = one(**some).loss
            loss.backward()
            losses.append(float(loss.detach()))
            grads = [p.grad for p in modules[0].parameters()]
            assert all(bool(grad.isfinite().all()) for grad in grads) and any(bool(grad.any()) for grad in grads)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ids and mask with the padding moved to the left, for generating."""
    counts = inputs["attention_mask"].sum(1).tolist()
    width = inputs["input_ids"].shape[1]
    return {
        name: torch.stack([row.roll(width - count) for row, count in zip(inputs[name], counts, strict=True)])
        for name in ("input_ids", "attention_mask")
    }


def test_no_decode_step_waits_for_the_device(model_of, path, monkeypatch):
    """There the host reads each decision, in every layer and step."""
    monkeypatch.setattr(Selection, "check_values", lambda self, token_count: None)
    model, (maker, made) = model_of("llava"), rows()
    inputs = maker.inputs(made)
    with foveate.attach(model, PLAN.format(path=path)), weights_on_device(model):
        with syncs_of_foveate() as one:
            answers_of(model, inputs, 2)
        short = len(one)
        with syncs_of_foveate() as many:
            answers_of(model, inputs, 30)
        assert len(many) == short, many


def answers_of(model: nn.Module, inputs: dict[str, Tensor], tokens: int) -> None:
    tiny.generate(model, on_device(inputs), tokens)
