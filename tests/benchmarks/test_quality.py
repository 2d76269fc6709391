"""The quality study: its shortcut equals generate(), it goes on where it stopped, and its page says what the file says."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveate
from benchmarks import quality
from benchmarks._quality_page import difference, write_page
from benchmarks._quality_plots import Study
from foveate.demo.evaluation import generate_answers, held_out_samples
from foveate.demo.loading import load_demo

TASKS = ("color", "count", "tally", "backwards", "follow_up", "two_image", "video")


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load_demo()


FULL_PLANS = [pytest.param(plan, marks=pytest.mark.full) for plan in ("none", "pool(layer=2)")]


@pytest.mark.full
@pytest.mark.parametrize("plan", ["fastv(layer=2, keep=0.3)", *FULL_PLANS])
def test_one_pass_through_the_pruned_model_decides_like_generate(demo: tuple[Any, Any], plan: str) -> None:
    model, processor = demo
    asked = [(sample, question) for sample in held_out_samples(3, 11, TASKS) for question in sample.questions]
    forced = quality.Prompts.of(processor, asked).right(model, quality.Row("any", 2, 0.3, plan))
    written = []
    for sample, question in asked:
        with foveate.attach(model, plan) if plan != "none" else nullcontext():
            written += [generate_answers(model, processor, [(sample, question)], 80) == [question.answer]]
    assert forced.tolist() == written


@pytest.mark.full
def test_a_stopped_study_goes_on_and_its_page_agrees(
    demo: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "KEEPS", (0.5, 0.25))
    monkeypatch.setattr(quality, "LAYERS", (2, 4))
    monkeypatch.setattr(quality, "load_demo", lambda folder: demo)
    out = tmp_path / "study.json"
    measured: list[str] = []
    right = quality.Prompts.right

    def stops(self: quality.Prompts, model: Any, row: quality.Row) -> Any:
        measured.append(row.name)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return right(self, model, row)

    monkeypatch.setattr(quality.Prompts, "right", stops)
    with pytest.raises(KeyboardInterrupt):
        quality.run(2, out, None)
    assert len(json.loads(out.read_text())["rows"]) == 3
    quality.run(2, out, None)
    names = [row.name for row in quality.rows()]
    assert measured == [*names[:4], *names[3:]]
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["rows"]] == names
    page = tmp_path / "docs" / "quality.md"
    write_page(report, out, page)
    text, study = page.read_text(), Study(report)
    fastv = study.get("fastv", 2, 0.5)
    assert fastv is not None
    assert f"{fastv.mean():.3f} ({difference(fastv, study.plain)})" in text
    assert "not measured" in text
    for name in ("quality-curves.png", "quality-grid.png", "quality-rows.png"):
        assert (tmp_path / "docs" / "pictures" / name).stat().st_size > 10_000
    for entry in report["position_bias"]:
        assert np.mean(entry["kept_share_of_each_row"]) == pytest.approx(entry["keep"], abs=0.01)


def test_another_study_is_not_written_over(demo: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "load_demo", lambda folder: demo)
    out = tmp_path / "study.json"
    out.write_text(json.dumps({"questions_per_task": 7, "seed": 1, "layers": 8, "versions": {}, "rows": []}))
    with pytest.raises(SystemExit, match="another study"):
        quality.run(2, out, None)
