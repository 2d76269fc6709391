from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from foveate.demo import evaluation
from foveate.demo.blind import MajorityAnswers, majority_answers
from foveate.demo.evaluation import (
    DemoEvaluationConfig,
    evaluate_demo,
    held_out_samples,
    wilson_interval,
)
from foveate.demo.questions import Question
from foveate.demo.samples import TASKS


def test_the_wilson_interval_matches_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_a_task_that_no_sample_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_PATIENCE", 30)
    with pytest.raises(ValueError, match="no question of page in 30 samples"):
        held_out_samples(1, 0, ("color", "page"))


def test_held_out_questions_are_as_many_as_asked_and_one_per_picture() -> None:
    samples = held_out_samples(20, seed=0)
    counts = Counter(question.task for sample in samples for question in sample.questions)
    assert counts == dict.fromkeys(TASKS, 20)
    for sample in samples:
        assert len({question.task for question in sample.questions}) == len(sample.questions)


def test_the_majority_falls_back_from_the_question_to_the_task() -> None:
    seen = [Question("color", "often?", "red")] * 3 + [Question("color", "rare?", "green")]
    seen += [Question("color", "other?", "blue")] * 5
    guesser = MajorityAnswers(seen)
    assert guesser.answer(Question("color", "often?", "?")) == "red"
    assert guesser.answer(Question("color", "rare?", "?")) == "blue"
    assert guesser.answer(Question("color", "never seen?", "?")) == "blue"


@pytest.mark.full
def test_blind_guessing_is_near_chance_where_it_should_be() -> None:
    guesser = majority_answers(seed=1, pictures=1500)
    questions = [question for sample in held_out_samples(150, seed=0) for question in sample.questions]
    for task, ceiling in {"color": 0.25, "shape": 0.27, "size": 0.65, "position": 0.25, "exist": 0.65}.items():
        right = [guesser.answer(question) == question.answer for question in questions if question.task == task]
        assert sum(right) / len(right) < ceiling, task


@pytest.mark.full
def test_an_evaluation_reports_every_task_beside_its_baselines(processor: Any, tiny_model: Any) -> None:
    settings = DemoEvaluationConfig(questions_per_task=4, captions=2, majority_pictures=50, batch_size=4)
    results = evaluate_demo(tiny_model, processor, settings)
    assert [row["task"] for row in results["tasks"]] == list(TASKS)
    for row in results["tasks"]:
        assert row["questions"] == 4
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["gain"] == row["accuracy"] - max(row["majority_blind"], row["blank_blind"])
    assert results["captions"]["captions"] == 2
    assert {"torch", "transformers", "foveate"} <= set(results["versions"])
