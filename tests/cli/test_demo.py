"""foveate demo: two labelled tables, two pictures and a video."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import foveate
from foveate.cli import demo as command_file


@pytest.fixture
def small_speed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one takes a minute; the table's arithmetic does not care."""
    from foveate.api.capabilities import tiny_model

    monkeypatch.setattr(command_file, "speed_model", lambda: tiny_model("llava"))


@pytest.mark.usefixtures("small_speed_model")
def test_demo_prints_two_tables_and_writes_two_pictures_and_a_video(command, tmp_path):
    out = tmp_path / "out"
    results = tmp_path / "results.json"
    code, text, _ = command("demo", "--out", str(out), "--repeats", "1", "--results", str(results))
    assert code == 0
    assert "1. Answers of the embedded demo model" in text
    assert "2. Speed of a random-weight LLaVA" in text
    for name in ("plain", "FastV keep .5", "FastV keep .25", "random keep .25"):
        assert name in text
    for name in ("kept-rendered.png", "kept-photo.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 4 * 300
    assert "the orange star moves down. FastV keep .5: the orange star moves down." in text
    assert len(foveate.load_video(out / "clip.mp4").frames) == 4
    with Image.open(out / "kept-clip.png") as strip:
        assert strip.width > 4 * 200 and strip.height > 2 * 200
    rows = json.loads(results.read_text())["rows"]
    assert [row["kept_tokens"] for row in rows] == [36, 18, 9, 4]
    assert rows[1]["prefill_flops_ratio"] < 1


@pytest.mark.full
@pytest.mark.usefixtures("small_speed_model")
def test_demo_without_pyav_says_what_is_left_out(command, tmp_path, monkeypatch):
    monkeypatch.setattr(command_file, "find_spec", lambda name: None)
    code, text, _ = command("demo", "--out", str(tmp_path), "--repeats", "1")
    assert code == 0
    assert "pip install foveate[video]" in text
    assert {path.name for path in tmp_path.iterdir()} == {"kept-rendered.png", "kept-photo.png"}


@pytest.mark.full
def test_the_speed_model_is_about_100m_parameters_with_1024_visual_tokens():
    model, inputs = command_file.speed_model()
    assert 90e6 < sum(parameter.numel() for parameter in model.parameters()) < 110e6
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 1024
