"""The study of bases that were trained along: its page says what its file says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import trained_bases
from foveate.demo.loading import load_demo
from tests.trained import random_predictors


@pytest.mark.full
def test_labels_join_one_file_and_the_page_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = load_demo()
    monkeypatch.setattr(trained_bases, "load_demo", lambda base: demo)
    folder, _ = random_predictors(tmp_path / "predictors", demo[0])
    out, page = tmp_path / "study.json", tmp_path / "trained_bases.md"
    trained_bases.run("shipped", None, Path(folder), True, 1, out)
    trained_bases.run("another seed", None, Path(folder), False, 1, out)
    control = {"settings": {"mode": "full", "masks": "random", "base_rate": 3e-5, "batch_size": 8, "seed": 1}, "steps": 7}
    (tmp_path / "control.json").write_text(json.dumps(control))
    trained_bases.run("random masks", tmp_path / "model", None, True, 1, out)
    bases = json.loads(out.read_text())["bases"]
    assert [len(base["rows"]) for base in bases.values()] == [9, 3, 6]
    assert str(tmp_path) not in out.read_text()
    assert bases["shipped"]["rows"]["random both"] == bases["random masks"]["rows"]["random both"]  # the same weights here
    trained_bases.write_page(json.loads(out.read_text()), out, page)
    text = page.read_text()
    accuracy = np.mean([int(mark) for mark in bases["shipped"]["rows"]["learned image"]["right"]])
    assert "| shipped | " in text and f"{accuracy:.3f} [" in text
    assert "masks drawn by chance, 7 steps of 8 rows" in text
    assert "shipped: learned answer against random answer on long answers: " in text


def test_verdicts_compare_equal_tokens(tmp_path: Path) -> None:
    """A base of learned masks meets the one of random masks; differences are of the same questions."""

    def row(marks: str) -> dict[str, str]:
        return {"right": marks * 25}

    def base(mode: str, masks: str, **rows: str) -> dict[str, object]:
        settings = {"mode": mode, "masks": masks, "base_rate": 1e-5, "batch_size": 8, "seed": 1}
        names = {"none": "none", "random_both": "random both", "learned_both": "learned both"}
        names |= {f"learned_{part}": f"learned {part}" for part in ("image", "answer")}
        names |= {"random": "random", "random_answer": "random answer"}
        return {
            "provenance": {"settings": settings, "steps": 3},
            "rows": {names[name]: row(marks) for name, marks in rows.items()},
        }

    learned = dict(learned_image="1110", learned_answer="1100", learned_both="1110")
    controls = dict(none="1111", random="1000", random_answer="0011", random_both="1000")
    bases = {
        "shipped": base("predictors", "learned", **learned, **controls),
        "seed 2": base("predictors", "learned", **learned),
        "along": base("full", "learned", **learned, **controls),
        "by chance": base("full", "random", **{**controls, "random_both": "1100"}),
        "longer": base("full", "none", **{**controls, "none": "0111"}),
    }
    said = trained_bases._verdict(bases, np.array([True, True, False, False] * 25))
    assert "shipped: learned image against random on all questions: better, +50.0" in said
    assert "seed 2: learned answer against random answer on long answers: better, +100.0" in said
    assert "learned masks (learned both) against one with random masks (random both): better, +25.0" in said
    assert "learned masks (none) against one with no masks (none): better, +25.0" in said
