from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from foveate.demo.forced import answer_logits, correct_answers, hidden_states, vision_features
from foveate.demo.long_answers import CAPTION, LONG_TASKS
from foveate.demo.packing import IGNORED, PackedBatch, Packer, without_every_other_output
from foveate.demo.samples import KINDS, make_sample

TOLERANCE = 2e-5  # float32, sums over another number of columns


def test_packed_questions_equal_separate_conversations(processor: Any, tiny_model: Any) -> None:
    for kind in KINDS:
        samples = [make_sample("test", 2, index, kind=kind) for index in range(2, 4)]
        batch = Packer(processor).pack(samples, [samples[0].long_questions, ()])
        check_packing(tiny_model, batch, len(samples[0].pictures))


def check_packing(tiny_model: Any, batch: PackedBatch, pictures: int) -> None:
    with torch.no_grad():
        packed = tiny_model.lm_head(hidden_states(tiny_model, batch, vision_features(tiny_model, batch.pixel_values)))
        for row, questions in enumerate(batch.questions):
            pixels = batch.pixel_values[row * pictures : (row + 1) * pictures]
            for number in range(1, len(questions) + 1):
                columns = (batch.segments[row] == number).nonzero()[:, 0]
                ids = torch.cat([batch.input_ids[row, : batch.prefix], batch.input_ids[row, columns]])[None]
                single = tiny_model(input_ids=ids, pixel_values=pixels).logits[0]
                torch.testing.assert_close(packed[row, columns], single[batch.prefix :], atol=TOLERANCE, rtol=0)


def test_only_answers_are_labelled_and_long_ones_weigh_less(processor: Any) -> None:
    sample = next(s for s in (make_sample("test", 2, i) for i in range(99)) if len(s.long_questions) == 4)
    batch = Packer(processor, question_weight=3.0).pack([sample], [sample.long_questions])
    for number, question in enumerate(batch.questions[0], start=1):
        is_own = batch.segments[0] == number
        labels = batch.labels[0][is_own]
        answer = processor.tokenizer.decode(labels[labels != IGNORED])
        turns = [*(answer for _, answer in question.earlier), question.answer]
        assert answer == "".join(f" {turn}<|end|>" for turn in turns)
        graded = processor.tokenizer.decode(labels[batch.is_graded[0][is_own]])
        assert graded == f" {question.answer}<|end|>"
        assert set(batch.weights[0][is_own].tolist()) == {1.0 if question.task in LONG_TASKS else 3.0}
    assert [question.task for question in batch.questions[0][-4:]] == [CAPTION, "summary", "backwards", "follow_up"]


def test_padding_does_not_change_the_loss(processor: Any, tiny_model: Any) -> None:
    sample = make_sample("test", 2, 0)
    short = replace(sample, questions=sample.questions[:1])
    packer = Packer(processor)
    alone = packer.pack([short])
    padded = packer.pack([short, sample], [(), sample.long_questions])
    assert padded.input_ids.shape[1] > alone.input_ids.shape[1]
    with torch.no_grad():
        logits, _ = answer_logits(
            tiny_model, alone, hidden_states(tiny_model, alone, vision_features(tiny_model, alone.pixel_values))
        )
        states = hidden_states(tiny_model, padded, vision_features(tiny_model, padded.pixel_values))
        company, _ = answer_logits(tiny_model, padded, states)
    torch.testing.assert_close(company[: len(logits)], logits, atol=TOLERANCE, rtol=0)


def test_correct_answers_has_one_entry_per_question(processor: Any, tiny_model: Any) -> None:
    samples = [make_sample("test", 2, index, kind="pair") for index in range(3)]
    batch = Packer(processor).pack(samples)
    for blank in (False, True):
        correct = correct_answers(tiny_model, batch, blank=blank)
        assert [len(row) for row in correct] == [len(sample.questions) for sample in samples]


def test_every_second_output_token_is_hidden_from_those_behind_it(processor: Any) -> None:
    dialogue = next(s for s in (make_sample("test", 2, i) for i in range(99)) if s.long_questions[-1].earlier)
    before = Packer(processor).pack([dialogue], [dialogue.long_questions])
    after = without_every_other_output(before)
    checked = 0
    for number in range(1, len(before.questions[0]) + 1):
        columns = (before.segments[0] == number).nonzero()[:, 0].tolist()
        outputs = [column for column in columns if before.labels[0, column] != IGNORED]
        for i, row in enumerate(columns):
            expected = [column for column in columns[: i + 1] if column == row or column not in outputs[1::2]]
            seen = after.is_visible[0, 0, row].nonzero()[:, 0].tolist()
            assert seen == [*range(before.prefix), *expected]
            checked += len(columns[: i + 1]) - len(expected)
    assert checked > 100
    assert before.is_visible.sum() - after.is_visible.sum() == checked
