"""The study of trained predictors: its page says what its file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import predictors
from foveate.demo.loading import load_demo
from tests.trained import random_predictors


@pytest.mark.full
def test_the_file_goes_on_and_the_page_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = load_demo()
    monkeypatch.setattr(predictors, "load_demo", lambda base: demo)
    folder, _ = random_predictors(tmp_path / "predictors", demo[0], keep=0.3)
    out, page = tmp_path / "study.json", tmp_path / "docs" / "predictors.md"
    predictors.run(Path(folder), None, 1, out)
    report = json.loads(out.read_text())
    plans = [row.plan for row in predictors.rows(folder)]
    assert len(report["rows"]) == len(plans) + 2 == 13
    stored = {row["method"]: row["stored"] for row in report["rows"] if "stored" in row}
    assert abs(stored["stride answer, as much"] - stored["learned answer"]) < 0.1
    assert all(str(tmp_path) not in row["plan"] for row in report["rows"])
    assert {row["keep"] for row in report["rows"]} == {1.0, 0.3}
    report["rows"] = report["rows"][:-1]
    out.write_text(json.dumps(report))
    predictors.run(Path(folder), None, 1, out)
    assert len(json.loads(out.read_text())["rows"]) == 13
    predictors.write_page(json.loads(out.read_text()), out, page)
    text = page.read_text()
    accuracy = {row["method"]: row["accuracy"] for row in report["rows"]}
    for name in ("learned image", "random", "stride answer"):
        assert f"| {name}: `" in text and f"{accuracy[name]:.3f} (" in text
    assert "learned image is" in text and "learned answer is" in text
