"""The study of merging: its errors by hand, its plans keep equal counts, it goes on where it stopped, its page agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from benchmarks import merging
from foveate.demo.loading import load_demo


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load_demo()


def test_errors_by_hand() -> None:
    plain = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]])
    changed = torch.tensor([[[0.0, 0.0], [2.0, 1.0], [9.0, 9.0]]])
    scale = (4 + 0 + 4) / 3
    found = merging.errors(plain, changed, [torch.tensor([0, 1])])
    assert found["own"] == pytest.approx([(0 + 1) / 2 / scale])
    assert found["coverage"] == pytest.approx([(0 + 1 + (4 + 1)) / 3 / scale])


def test_all_plans_of_a_row_of_the_table_leave_the_same_number_of_tokens(demo: tuple[Any, Any]) -> None:
    model, _ = demo
    for keep in merging.KEEPS:
        left: dict[str, set[float]] = {}
        for row in merging.rows():
            if row.keep == keep and row.plan != "none":
                counts = foveate.estimate(model, row.plan, visual_tokens=144).visual_tokens_per_layer[1]
                left.setdefault(row.method.split()[0], set()).add(counts[-1])
        assert set(left) == {"encoder", "decoder", "both"}
        assert all(len(counts) == 1 for counts in left.values())
        assert all(abs(min(counts) - 144 * keep) <= 1 for counts in left.values())


@pytest.mark.full
def test_a_stopped_study_goes_on_and_its_page_agrees(
    demo: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "KEEPS", (0.5,))
    monkeypatch.setattr(merging, "PICTURES", 3)
    monkeypatch.setattr(merging, "load_demo", lambda folder: demo)
    small = merging.siglip
    monkeypatch.setattr(merging, "siglip", lambda: demo[0])
    assert small().config.image_seq_length == 729
    pictures = merging.feature_study
    monkeypatch.setattr(
        merging, "feature_study", lambda model, pixels, layer, name: pictures(model, pixels[:, :, :96, :96], 2, name)
    )
    right, measured = merging.Prompts.right, []

    def stops(self: Any, model: Any, row: Any) -> Any:
        measured.append(row.name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return right(self, model, row)

    monkeypatch.setattr(merging.Prompts, "right", stops)
    out = tmp_path / "study.json"
    with pytest.raises(KeyboardInterrupt):
        merging.run(1, out)
    merging.run(1, out)
    names = [row.name for row in merging.rows()]
    assert measured == [*names[:3], *names[2:]]
    report = json.loads(out.read_text())
    page = tmp_path / "docs" / "merging.md"
    merging.write_page(report, out, page)
    text = page.read_text()
    assert "not defined" in text and "not measured" not in text
    by_name = {row["name"]: row["accuracy"] for row in report["rows"]}
    assert f"{by_name['encoder partition keep 0.5']:.3f} (" in text
    assert "is best" in text
