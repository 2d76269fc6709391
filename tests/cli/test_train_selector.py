"""foveate train selector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.predictors import read_config


@pytest.mark.full
def test_the_demo_model_gets_a_selector_and_uses_it(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, error = command("train", "selector", "--smoke", "--query", "text", "--out", str(out))
    assert code == 0, error
    spec = f"selector(site=pre_llm, keep=0.2, query=text, path='{out}')"
    assert f'--plan "{spec}"' in text and "step 4 of 4" in text
    assert read_config(str(out)).provenance["settings"]["query"] == "text"
    picture = tmp_path / "p.png"
    Image.new("RGB", (96, 96), "red").save(picture)
    code, text, error = command("run", str(picture), "what do you see?", "--plan", spec)
    assert code == 0, error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "/nowhere"), "--model needs --data"),
        (("--query", "last"), "--query is none or text"),
        (("--least-keep", "0.9"), "--least-keep 0.9 is more than --most-keep 0.6"),
        (("--straight", "2"), "--straight 2.0"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(
    command: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "run"
    code, _, error = command("train", "selector", "--out", str(out), *arguments)
    assert code == 2 and said in error and error.strip().count("\n") == 0
    assert not out.exists()
