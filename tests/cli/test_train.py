"""foveate train demo and foveate eval demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_smoke_training_writes_a_model_that_eval_scores(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, error = command("train", "demo", "--smoke", "--out", str(out))
    assert code == 0, error
    assert "foveate eval demo --model" in text
    assert (out / "log.jsonl").read_text().count("\n") >= 2
    scores = tmp_path / "scores.json"
    code, text, error = command("eval", "demo", "--model", str(out / "model"), "--questions", "2", "--out", str(scores))
    assert code == 0, error
    for task in json.loads(scores.read_text())["tasks"]:
        assert task["task"] in text
        assert task["questions"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "demo", "--steps", "100"), "--smoke"),
        (("train", "demo", "--precision", "int4"), "bfloat16 or float32"),
        (("train", "demo", "--out", __file__), "is a file"),
        (("eval", "demo", "--model", "/nowhere"), "no demo weights"),
        (("eval", "demo", "--out", "/nowhere/at/all.json"), "does not exist"),
    ],
)
def test_bad_requests_are_one_line(command: Any, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, error = command(*arguments)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
