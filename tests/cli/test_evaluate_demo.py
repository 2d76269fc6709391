"""foveate eval demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_demo_model_of_one_s_own_is_scored(command: Any, model_folder: str, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    code, text, error = command("eval", "demo", "--model", model_folder, "--questions", "2", "--out", str(scores))
    assert code == 0, error
    for task in json.loads(scores.read_text())["tasks"]:
        assert task["task"] in text
        assert task["questions"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("eval", "demo", "--model", "/nowhere"), "no demo weights"),
        (("eval", "demo", "--out", "/nowhere/at/all.json"), "does not exist"),
    ],
)
def test_bad_requests_are_one_line(command: Any, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, error = command(*arguments)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
