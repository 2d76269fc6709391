"""The study of long answers: fair controls store as much, a stopped run goes on, its page says what its file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import generation
from benchmarks._generation_page import PAIRS, STYLES, write_page
from foveate.demo.long_answers import LONG_TASKS
from foveate.evaluate.overlap import OverlapScore
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


def study(scores: dict[str, float], old: bool = False) -> dict[str, Any]:
    """A raw file of one caption and one other task in which the plain model has these scores of answers."""
    numbers = {"perplexity": 1.1, "read": 9, "computed": 9, "kv_bytes": 100, "output_kv_bytes": 10}
    numbers |= {"last_pass_flops": 100, "output_flops": 10}
    named = {"overlap" if old else name: value for name, value in scores.items()}
    rows = [
        {"task": task, "name": name, "plan": plan, "scores": {key: [value] * 3 for key, value in (numbers | named).items()}}
        for task in ("caption", "tally")
        for name, plan in (("plain", "none"), ("fastv image", "fastv(layer=2, keep=0.2)"), ("learned image", "..."))
    ]
    report = {"samples": {"caption": 3, "tally": 3}, "layer": 2, "keep": 0.2, "random_seeds": 5, "provenance": {}, "rows": rows}
    (first,) = list(scores) if old else [None]
    return report | ({"overlap_score": first} if old else {"overlap_scores": list(scores)})


@pytest.mark.parametrize(
    ("report", "meteor"),
    [
        (study({"meteor": 0.31, "rouge_l": 0.9}), "0.310 | "),
        (study({"rouge_l": 0.9}), "not measured | not measured"),
        (study({"rouge_l": 0.9}, old=True), "not measured | not measured"),
    ],
    ids=["both scores", "no METEOR", "a file from before"],
)
def test_the_page_has_a_column_of_meteor_and_says_where_it_was_not_measured(
    tmp_path: Path, report: dict[str, Any], meteor: str
) -> None:
    write_page(report, Path("raw.json"), tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "| plan | PPL | PPL change | METEOR | METEOR change | ROUGE-L | ROUGE-L change | output tokens |" in "\n".join(lines)
    (plain,) = [line for line in lines if line.startswith("| plain: ")]
    assert f"| 1.100 |  | {meteor} | 0.900 |  |" in plain
    missing = [line for line in lines if "METEOR was not measured: nltk had no" in line]
    assert len(missing) == ("not" in meteor)
    (verdict,) = [line for line in lines if line.startswith("- learned image against fastv image")]
    assert ("METEOR" in verdict) == ("not" not in meteor) and "ROUGE-L" in verdict


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
    monkeypatch.setattr(generation, "meteor", lambda: OverlapScore("meteor", lambda answer, truth: float(answer == truth)))
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
    assert report["overlap_scores"] == ["meteor", "rouge_l"]
    scores = {(row["task"], row["name"]): row["scores"] for row in report["rows"]}
    assert all({"meteor", "rouge_l"} <= set(found) for found in scores.values())
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
