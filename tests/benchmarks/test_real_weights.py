"""The studies on pretrained weights, without the weights: their texts, plans and pictures, a probe by hand, and their page."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import _real_language, _real_vision
from benchmarks._real_page import page_of
from benchmarks._real_vision import Place, Probe, read_out
from foveate.spec import parse


def test_every_plan_can_be_read_and_every_gate_stands_bare_beside_its_window() -> None:
    plans = list(_real_language.plans().values())
    assert len(plans) == len(set(plans))
    for plan in [*plans, *_real_vision.plans().values()]:
        parse(plan)
    for name in ("random", "stride"):
        for keep in _real_language.KEEPS:
            assert {f"{name}_gate(layer=2, keep={keep}, recent={recent})" for recent in (0, 32)} <= set(plans)


def test_texts_are_english_and_there() -> None:
    texts = _real_language.texts()
    assert len(texts) == len({text.source for text in texts}) >= 15
    assert all(len(text.content) > 1500 and " the " in text.content for text in texts)


def test_what_is_left_of_an_object_by_hand() -> None:
    given = torch.arange(256.0)[:, None]
    covered = torch.zeros(256, dtype=torch.bool)
    covered[[17, 18]] = True
    place = Place("ring", "red", covered, (2.0, 1.5))
    assert float(read_out(given, torch.tensor([3, 17, 18]), place)) == 17.5
    assert float(read_out(given, torch.tensor([3, 18]), place)) == 18
    assert float(read_out(given, torch.tensor([3, 34, 255]), place)) == 34  # one row below


def test_places_cover_the_drawn_objects() -> None:
    ((picture, places),) = _real_vision.scenes("test", 1)
    assert picture.width == picture.height and len(places) >= 4
    for place in places:
        x, y = (int(value) for value in place.centre)
        assert place.covered.view(16, 16)[y, x] and int(place.covered.sum()) < 64


def test_a_probe_learns_what_is_linear() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 6)
    names = ["up" if row[0] + row[1] > 0 else "down" for row in rows]
    probe = Probe(rows[:200], names[:200])
    assert sum(probe.right(rows[200:], names[200:])) > 90
    assert sum(Probe(rows[:200], names[:200][::-1]).right(rows[200:], names[200:])) < 75


def test_the_page_says_what_the_raw_files_say() -> None:
    page = page_of(_language(), _vision(), "one.json", "two.json")
    assert "| `random_gate(layer=2, keep=0.5, recent=0)` | 20.09 | 2.72 [2.72, 2.72] | 50 % |" in page
    assert "the window divides the perplexity by 2.46 [2.46, 2.46]" in page and "Every gate is better with the window" in page
    assert "in layers 1." in page and "| 0 | 10.0 % [10.0, 10.0] | 10.0 % [10.0, 10.0] |" in page
    assert "- shape, keep 0.5: **v1** is best; all others are below it beyond their interval." in page
    assert "{" not in page


def _language() -> dict[str, Any]:
    texts = ["a", "b", "c"]
    rows = [{"plan": "none", "loss": [2.0] * 3, "answer_kv_bytes": [100.0] * 3}]
    for name in ("random", "stride"):
        for recent, loss in ((0, 3.0), (32, 2.1)):
            plan = f"{name}_gate(layer=2, keep=0.5, recent={recent})"
            rows.append({"plan": plan, "loss": [loss] * 3, "answer_kv_bytes": [50.0] * 3})
    sinks = {kind: [[0.1, 0.5]] * 3 for kind in ("instruction", "output")}
    return {"weights": {"x 1": "y"}, "texts": texts, "rows": rows, "sinks": sinks}


def _vision() -> dict[str, Any]:
    def right(name: str, keep: float) -> str:
        return "1" * 40 if name in ("plain", "v1") and keep in (1.0, 0.5) else "1" * 20 + "0" * 20

    photographs = [
        {"method": name, "keep": keep, "photographs": ["p: a", "p: b"], "errors": {"own": [0.1, 0.2], "coverage": [0.3, 0.3]}}
        for name, keep in _real_vision.plans()
    ]
    objects = [
        {"method": name, "keep": keep, "trained_on": 7, "right": {kind: right(name, keep) for kind in ("shape", "color")}}
        for name, keep in [("plain", 1.0), *_real_vision.plans()]
    ]
    return {"photographs": photographs, "objects": objects}


def test_nothing_is_measured_without_the_weights(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.real_weights import language
    from foveate.errors import InputError

    monkeypatch.setattr("real_weights.fetching.user_cache_path", lambda name: tmp_path / "nothing")
    with pytest.raises(InputError, match="run python -m real_weights fetch"):
        language(tmp_path / "out.json", 1)
    assert not (tmp_path / "out.json").exists()
