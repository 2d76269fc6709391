"""The attention study of the demo model: shares of a rater's attention add up, and the page says what the file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import attention


@pytest.mark.full
def test_the_file_adds_up_and_the_page_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, page = tmp_path / "study.json", tmp_path / "docs" / "attention.md"
    monkeypatch.setattr(sys, "argv", ["attention", "--questions", "1", "--out", str(out), "--page", str(page)])
    attention.main()
    report = json.loads(out.read_text())
    assert report["prompts"] > 5
    assert set(report["raters"]) == {"output", "instruction"}
    for rater in report["raters"].values():
        np.testing.assert_allclose(np.asarray(rater["shares"]).sum(-1), 1, atol=1e-4)
    text = page.read_text()
    assert f"{report['prompts']}\nheld-out" in text or f"{report['prompts']} held-out" in text.replace("\n", " ")
    assert (page.parent / "pictures" / "attention.png").stat().st_size > 10_000
