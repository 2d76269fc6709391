"""Trained predictors of the demo model beside every control at equal tokens.

    python -m benchmarks.predictors run --predictors FOLDER --questions 60 --out benchmarks/results/NAME.json
    python -m benchmarks.predictors page benchmarks/results/NAME.json --out docs/predictors.md

Exact match of greedy answers, decided by one teacher-forced pass that equals decoding, gates included. `--model` is the demo
model that the predictors were trained with, if its own weights learned too. `run` can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import foveate
from benchmarks._results import write_results
from benchmarks._study import answers, beside, difference, graded, resumed, table
from benchmarks.quality import SEED, Prompts, Row, exact, seeded
from foveate.demo.evaluation import held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.evaluate.intervals import interval
from foveate.predictors import read_config

# Tasks whose answers are long enough for a gate to matter.
LONG = ("caption", "tally", "summary", "backwards", "follow_up")


def rows(path: str) -> Iterator[Row]:
    """Every plan; `keep` is that of the picture."""
    config = read_config(path)
    layer, keep, stored = config.layer, config.keep, config.text_keep or 0.5
    own = f"path={json.dumps(path)}"
    yield Row("plain", None, 1.0, "none")
    yield Row("learned image", layer, keep, f"dynamic_image(layer={layer}, keep={keep}, {own})")
    yield Row("learned image by threshold", layer, keep, f"dynamic_image(layer={layer}, keep=threshold:0.5, {own})")
    for name in ("fastv", "random", "uniform"):
        yield Row(name, layer, keep, f"{name}(layer={layer}, keep={keep})")
    if config.text_keep is not None:
        gates = {
            "learned": f"dynamic_text(layer={layer}, {own})",
            "random": f"random_gate(layer={layer}, keep={stored}, recent=0)",
            "stride": f"stride_gate(layer={layer}, keep={stored}, recent=0)",
        }
        for name, gate in gates.items():
            yield Row(f"{name} answer", layer, 1.0, gate)
        image = f"dynamic_image(layer={layer}, keep={keep}, {own})"
        yield Row("learned image + learned answer", layer, keep, f"{image} | {gates['learned']}")
        yield Row("random image + random answer", layer, keep, f"random(layer={layer}, keep={keep}) | {gates['random']}")


def stored_share(model: Any, prompts: Prompts, plan: str) -> float:
    """Which share of the tokens of long answers a plan's gate stores."""
    stored = judged = 0
    for number, (members, length, batch) in enumerate(prompts.batches):
        long = [row for row, index in enumerate(members) if prompts.tasks[index] in LONG]
        if not long:
            continue
        with foveate.attach(model, seeded(plan, number)) as attachment:
            exact(model, batch, length, attachment)
            kept = attachment.last.trace.answer_kept
        for row in long:
            real = batch.segments[row, length : length + len(kept[row])] >= 0
            stored, judged = stored + int(kept[row][real].sum()), judged + int(real.sum())
    return stored / judged


def run(folder: Path, base: Path | None, questions: int, out: Path) -> None:
    """Measure what the file does not hold yet."""
    model, processor = load_demo(base)
    config = read_config(str(folder))
    report: dict[str, Any] = {
        "what": "trained predictors and controls, exact match of the demo model", "questions_per_task": questions, "seed": SEED,
        "device": "cpu", "dtype": "float32", "versions": versions(), "layer": config.layer, "keep": config.keep,
        "text_keep": config.text_keep, "provenance": dict(config.provenance), "rows": [],
    }  # fmt: skip
    report = resumed(out, report, ("questions_per_task", "seed", "versions", "provenance"))
    asked = [(sample, question) for sample in held_out_samples(questions, SEED) for question in sample.questions]
    prompts = Prompts.of(processor, asked)
    report["tasks"] = prompts.tasks
    for row in report["rows"]:
        _add_share(row, model, prompts, str(folder))
    write_results(out, report)
    for row in rows(str(folder)):
        _measure(report, row, model, prompts, folder, out)
    learned = next((row for row in report["rows"] if row["method"] == "learned answer"), None)
    if learned is not None:
        # The learned gate stores what it wants: its fair controls store as much.
        for name in ("random", "stride"):
            plan = f"{name}_gate(layer={config.layer}, keep={learned['stored']:.2f}, recent=0)"
            _measure(report, Row(f"{name} answer, as much", config.layer, 1.0, plan), model, prompts, folder, out)


def _measure(report: dict[str, Any], row: Row, model: Any, prompts: Prompts, folder: Path, out: Path) -> None:
    if row.method in {known["method"] for known in report["rows"]}:
        return
    right = prompts.right(model, row)
    plan = row.plan.replace(str(folder), "...")
    report["rows"].append({**asdict(row), "plan": plan, **graded(right)})
    _add_share(report["rows"][-1], model, prompts, str(folder))
    write_results(out, report)
    print(f"{row.method:32s} {right.mean():.3f}", flush=True)


def _add_share(row: dict[str, Any], model: Any, prompts: Prompts, folder: str) -> None:
    if "answer" in row["method"] and "stored" not in row:
        row["stored"] = stored_share(model, prompts, row["plan"].replace("...", folder))


PAGE = """# Trained predictors, measured

Made by `python -m benchmarks.predictors`; raw file with every answer: `{raw}`. Dynamic-LLaVA (arXiv 2412.00876) on the demo
model: before decoder layer {layer} a trained predictor keeps {keep:.0%} of each picture's tokens, and another decides which
tokens of the answer the later layers store, trained to {stored}. Exact match on {count:,} held-out questions ({per_task} of
each task); in brackets the difference in points to the plain model and its paired 95 % bootstrap. *Long*: {long}. Random draws
one of five seeds per batch. Trained as: {trained}.

{table}

{verdict}

## By task

{tasks}
"""


def write_page(report: dict[str, Any], raw: Path, out: Path) -> None:
    """Write the page."""
    right = {row["method"]: answers(row) for row in report["rows"]}
    tasks = np.array(report["tasks"])
    is_long = np.isin(tasks, LONG)
    lines = []
    for row in report["rows"]:
        own, plain = right[row["method"]], right["plain"]
        cells = [beside(own[part], plain[part]) for part in (np.ones_like(is_long), ~is_long, is_long)]
        cells.append(f"{row['stored']:.0%}" if "stored" in row else "100%")
        lines.append([f"{row['method']}: `{row['plan']}`", *cells])
    names = list(right)
    by_task = []
    for task in dict.fromkeys(tasks.tolist()):
        by_task.append([task, *(f"{right[name][tasks == task].mean():.2f}" for name in names)])
    trained = report["provenance"]
    text = PAGE.format(
        raw=raw.as_posix(), layer=report["layer"], keep=report["keep"], count=len(tasks), long=", ".join(LONG),
        stored="store everything" if report["text_keep"] is None else f"store {report['text_keep']:.0%}",
        per_task=report["questions_per_task"], tasks=table(["task", *names], by_task),
        table=table(["plan", "all", "short answers", "long answers", "stored of long answers"], lines),
        verdict=_verdict(right, is_long), trained=_trained(trained),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


def _trained(provenance: dict[str, Any]) -> str:
    settings = provenance.get("settings", {})
    shown = {key: settings[key] for key in ("mode", "masks", "steps", "batch_size", "seed", "least_answer") if key in settings}
    said = [f"{key} {value}" for key, value in shown.items()]
    if provenance.get("calibration"):
        said.append(f"margins shifted on {provenance['calibration']['rows']:.0f} held-out rows")
    return ", ".join(said) or "not said"


def _verdict(right: dict[str, Any], is_long: Any) -> str:
    """Learned choices against each control at equal tokens, in words."""
    said = []
    pairs = {
        "learned image": ("fastv", "random", "uniform"),
        "learned answer": ("random answer, as much", "stride answer, as much"),
    }
    for learned, controls in pairs.items():
        for control in controls:
            if learned in right and control in right:
                part = is_long if "answer" in learned else np.ones_like(is_long)
                own, other = right[learned][part], right[control][part]
                low, high = interval(100.0 * (own - other))
                word = "better than" if low > 0 else "worse than" if high < 0 else "**not told apart from**"
                where = " on long answers" if "answer" in learned else ""
                said.append(f"- {learned} is {word} {control}{where}: {difference(own, other)} points.")
    return "\n".join(said)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--predictors", type=Path, required=True)
    measure.add_argument("--model", type=Path, default=None, help="a trained demo model; the shipped one if left out")
    measure.add_argument("--questions", type=int, default=60, help="per task")
    measure.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--out", type=Path, default=Path("docs/predictors.md"))
    options = parser.parse_args()
    if options.command == "run":
        run(options.predictors, options.model, options.questions, options.out)
    else:
        write_page(json.loads(options.results.read_text(encoding="utf-8")), options.results, options.out)


if __name__ == "__main__":
    main()
