"""The study of long answers: fair controls store as much, a stopped run goes on, its page says what its file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import generation
from benchmarks._generation_page import PAIRS, STYLES, write_page
from foveate.demo.long_answers import LONG_TASKS
from foveate.predictors import read_config
from foveate.spec import parse


def test_every_plan_has_a_style_and_every_learned_one_its_controls() -> None:
    config = read_config("demo")
    plans = {**generation.plans_of(config, "demo"), **generation.fair_plans(config, 0.6)}
    assert set(plans) == set(STYLES)
    assert {*PAIRS, *(control for controls in PAIRS.values() for control in controls)} <= set(plans)
    for plan in plans.values():
        for stage in parse(plan).stages:
            assert stage.site.layer == config.layer


def test_the_share_of_a_gate_leaves_the_newest_token_out() -> None:
    # 4 of 8 and 2 of 4 tokens were stored in front of the newest one, which is computed too.
    assert generation.stored_share({"read": [9, 5], "computed": [5, 3]}) == 0.5


@pytest.mark.full
def test_a_stopped_study_goes_on_and_its_page_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score, done = generation.score_samples, []

    def stops(model: Any, samples: Any, plan: str, *args: Any, **kwargs: Any) -> Any:
        if len(done) == 3:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(plan)
        return score(model, samples, plan, *args, **kwargs)

    monkeypatch.setattr(generation, "score_samples", stops)
    counts, out, page = {"caption": 2, "follow_up": 2}, tmp_path / "study.json", tmp_path / "docs" / "generation.md"
    with pytest.raises(KeyboardInterrupt):
        generation.run("demo", None, counts, out, 6, progress=False)
    assert len(json.loads(out.read_text())["rows"]) == 3
    generation.run("demo", None, counts, out, 6, progress=False)
    report = json.loads(out.read_text())
    names = [row["name"] for row in report["rows"] if row["task"] == "caption"]
    assert set(names) == set(STYLES) and len(report["rows"]) == 2 * len(STYLES)
    # Random plans were measured with a seed for each sample.
    assert {"random(layer=2, keep=0.2, seed=0)", "random(layer=2, keep=0.2, seed=1)"} <= set(done)
    scores = {(row["task"], row["name"]): row["scores"] for row in report["rows"]}
    assert all(len(values) == 2 for row in scores.values() for values in row.values())
    for task in counts:
        learned, fair = (scores[task, name]["computed"] for name in ("learned answer", "stride gate, as much"))
        assert abs(sum(learned) - sum(fair)) <= 2 * len(learned)
        assert scores[task, "learned image"]["output_kv_bytes"] == scores[task, "plain"]["output_kv_bytes"]
        assert scores[task, "both learned"]["output_kv_bytes"] == scores[task, "learned answer"]["output_kv_bytes"]
    with pytest.raises(SystemExit, match="another study"):
        generation.run("demo", None, {"caption": 3}, out, 6, progress=False)
    capsys.readouterr()
    write_page(report, out, page)
    text = page.read_text()
    for name in STYLES:
        perplexity = scores["caption", name]["perplexity"]
        assert f"| {name}: `" in text and f"| {sum(perplexity) / 2:.3f} |" in text
    assert "both learned against fastv image + random gate, as much: PPL" in text and "follow_up" in text
    assert (page.parent / "pictures" / "generation-captions.png").stat().st_size > 10_000


def test_smoke_takes_every_task_and_the_folder_of_predictors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(generation, "run", lambda *args: calls.append(args))
    out = tmp_path / "study.json"
    monkeypatch.setattr("sys.argv", ["generation", "run", "--predictors", "some/folder", "--smoke", "--out", str(out)])
    generation.main()
    assert calls == [("some/folder", None, dict.fromkeys(LONG_TASKS, 2), out, 8)]
