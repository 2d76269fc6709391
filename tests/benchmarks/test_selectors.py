"""The study of selectors: it goes on where it stopped, rows are compared on the same questions, winners are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import selectors
from foveate import methods
from foveate.demo.evaluation import held_out_samples
from foveate.demo.loading import load_demo
from foveate.spec import parse


def test_every_point_is_a_plan_and_every_selector_has_its_controls() -> None:
    rows = list(selectors.rows())
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        parse(row.plan)
    for keep in selectors.KEEPS:
        for where in (selectors.BEFORE, selectors.INSIDE):
            assert {"random", "uniform"} <= {row.method for row in rows if row.where == where and row.keep == keep}
    assert {"divprune", "cdpruner", "scope", "dart", "fastv", "sparsevlm", "vscan"} <= {row.method for row in rows}
    assert all(row.method in (*methods.names(), "plain", "vscan", "downsampled picture") for row in rows)


@pytest.mark.full
def test_a_stopped_study_goes_on_and_its_page_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = load_demo()
    few = [row for row in selectors.rows() if row.keep in (1.0, 0.1) and row.method in ("plain", "random", "divprune", "fastv")]
    few += [row for row in selectors.rows() if row.keep == 0.1 and row.where == selectors.PICTURE]
    monkeypatch.setattr(selectors, "rows", lambda: iter(few))
    monkeypatch.setattr(selectors, "load_demo", lambda folder: demo)
    monkeypatch.setattr(selectors, "held_out_samples", lambda count, seed: held_out_samples(count, seed, ("color", "count")))
    out, seen = tmp_path / "study.json", []
    measure = selectors.measure

    def stops(model: Any, prompts: Any, row: Any, plain: Any) -> Any:
        seen.append(row.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return measure(model, prompts, row, plain)

    monkeypatch.setattr(selectors, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        selectors.run(6, out, None)
    selectors.run(6, out, None)
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["rows"]] == [row.name for row in few]
    plain = report["rows"][0]
    assert plain["agreement"] > 0.5 and plain["first_token_kl"] == pytest.approx(0.0, abs=1e-9)
    assert all(len(row["right"]) == 12 and row["first_token_kl"] >= -1e-9 for row in report["rows"])
    assert np.mean([int(mark) for mark in plain["right"]]) == pytest.approx(plain["accuracy"])
    page = tmp_path / "selectors.md"
    selectors.write_page(report, out, page)
    text = page.read_text(encoding="utf-8")
    assert "better than random" in text and "`divprune`" in text and "downsampled picture" in text
    assert "not measured" in text  # the shares that this run left out
