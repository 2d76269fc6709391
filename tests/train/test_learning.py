"""Predictors learn: on the shipped demo model, in a minute."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

import foveate
from foveate.demo.conversations import DemoConversations
from foveate.demo.evaluation import generate_answers
from foveate.demo.loading import load_demo
from foveate.train.config import DynamicLlavaConfig
from foveate.train.run import train_predictors

QUESTIONS = 40


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_learned_choice_of_a_fifth_beats_a_random_one(tmp_path: Path) -> None:
    """Colours are asked for: what matters is where the objects are."""
    config = DynamicLlavaConfig(
        mode="predictors",
        text_keep=None,
        steps=50,
        batch_size=4,
        width=64,
        heads=2,
        feedforward=128,
        blocks=1,
        predictor_rate=2e-3,
        precision="fp32",
        log_every=10,
    )
    rows = DemoConversations(200, only="color", block=4)
    outcome = train_predictors(load_demo, rows, tmp_path / "run", config, console=Console(quiet=True))
    assert abs(outcome.scores["image_keep"] - 0.2) < 0.03, outcome.scores
    model, processor = load_demo()
    test = DemoConversations(QUESTIONS, "test", only="color")
    asked = [test.ask(index) for index in range(QUESTIONS)]
    right = {}
    for plan in (outcome.spec, "random(layer=2, keep=0.2)"):
        with foveate.attach(model, plan):
            answers = generate_answers(model, processor, asked, 2)
        right[plan] = sum(answer == question.answer for answer, (_, question) in zip(answers, asked, strict=True))
    assert right[outcome.spec] >= right["random(layer=2, keep=0.2)"] + 4, right
