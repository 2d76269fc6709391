"""The speed of choosing: every selector takes its turn, in parts too, and the page says what the file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import selection
from foveate import methods


def test_every_method_that_chooses_by_what_it_is_shown_is_timed() -> None:
    found = selection.selectors()
    assert {"divprune", "fastv", "scope", "sparsevlm", "random", "evs"} <= set(found)
    assert not {"pool", "selector", "dynamic_image", "random_gate", "pixelprune"} & set(found)
    assert found["divprune(split=4)"].split == 4
    assert all(name.partition("(")[0] in methods.names() for name in found)


@pytest.mark.full
def test_a_run_has_a_row_for_each_share_and_its_page_shows_them(tmp_path: Path) -> None:
    runs = [selection.measure(tokens, 1, "smoke-llava") for tokens in (16, 36)]
    for one in runs:
        assert len(one["rows"]) == len(selection.selectors()) * len(selection.KEEPS)
        assert all(row["share"] == pytest.approx(row["ms"] / one["plain_ms"]) for row in one["rows"])
    out = tmp_path / "page.md"
    selection.write_page({"threads": 2, "runs": runs}, Path("benchmarks/results/name.json"), out)
    text = out.read_text(encoding="utf-8")
    row = next(row for row in runs[1]["rows"] if row["method"] == "divprune" and row["keep"] == 0.1)
    assert f"({row['ms']:,.1f} ms)" in text and text.count("\n| `") == len(selection.selectors())
