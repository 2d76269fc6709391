"""foveate train dynamic-llava."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.predictors import read_config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four rows, of which one names a picture that is missing and one a picture that is broken."""
    Image.new("RGB", (60, 40), "green").save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a green picture without a star."}]
    rows = [{"image": name, "conversations": turns} for name in ("a.png", "none.png", "broken.png", "a.png")]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.full
def test_without_a_model_the_demo_model_learns_from_generated_questions(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, error = command("train", "dynamic-llava", "--smoke", "--out", str(out), "--mode", "predictors")
    assert code == 0, error
    assert f"wrote {out}" in text and "step 4 of 4" in text
    assert "--plan \"dynamic_llava(path='" in text
    assert read_config(str(out)).provenance["settings"]["mode"] == "predictors"
    spec = f"dynamic_llava(path='{out}')"
    picture = tmp_path / "p.png"
    Image.new("RGB", (96, 96), "red").save(picture)
    code, text, error = command("run", str(picture), "what do you see?", "--plan", spec)
    assert code == 0, error


@pytest.mark.full
def test_a_model_with_data_of_its_own(command: Any, tmp_path: Path, model_folder: str, data: Path) -> None:
    out = tmp_path / "run"
    arguments = ("train", "dynamic-llava", "--smoke", "--model", model_folder, "--data", str(data), "--out", str(out))
    code, text, error = command(*arguments, "--no-text")
    assert code == 0, error
    assert "rows left out: 1 whose pictures are missing, 1 whose pictures cannot be read" in text
    config = read_config(str(out))
    assert config.text_keep is None and config.provenance["rows_left_out"] == 2
    assert (out / "model" / "model.safetensors").is_file()
    code, _, error = command(*arguments)
    assert code == 2 and "not empty" in error
    code, _, error = command(*arguments, "--resume", "--no-text")
    assert code == 0, error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "/nowhere"), "--model needs --data"),
        (("--data", "/nowhere.json"), "no data at"),
        (("--mode", "half"), "--mode is full, lora or predictors"),
        (("--no-text", "--text-keep", "0.5"), "contradict"),
        (("--eval-data", "x.json"), "belong to --data"),
        (("--layer", "9", "--smoke"), "this model has 8 decoder layers"),
        (("--keep", "2"), "--keep 2.0"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(
    command: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "run"
    code, _, error = command("train", "dynamic-llava", "--out", str(out), *arguments)
    assert code == 2
    assert said in error
    assert error.strip().count("\n") == 0
    assert not out.exists()


def test_data_that_is_wrong_is_one_line_and_writes_nothing(command: Any, tmp_path: Path, model_folder: str, data: Path) -> None:
    data.write_text("[1]")
    out = tmp_path / "run"
    code, _, error = command("train", "dynamic-llava", "--model", model_folder, "--data", str(data), "--out", str(out))
    assert code == 2 and "row 0: a row has" in error and error.count("\n") == 1
    assert not out.exists()
