"""What training the base along does, and what chance does: bases trained with learned, random and no masks, several seeds.

    python -m benchmarks.trained_bases run --label "shipped base, seed 1" --predictors FOLDER --out benchmarks/results/NAME.json
    python -m benchmarks.trained_bases run --label "random masks" --model FOLDER --out benchmarks/results/NAME.json
    python -m benchmarks.trained_bases page benchmarks/results/NAME.json --out docs/trained_bases.md

A learned choice can look good because the base has grown used to missing tokens. So each base is measured under its own
predictors and under every control, and a base trained as long with masks drawn by chance, or with none, stands beside it.
Same held-out questions as `benchmarks.predictors`. `run` adds a label to the file; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._results import write_results
from benchmarks._study import answers, difference, marks, resumed, table
from benchmarks.predictors import LONG, stored_share
from benchmarks.quality import SEED, Prompts, Row
from foveate.demo.evaluation import held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.evaluate.intervals import interval
from foveate.predictors import read_config

LAYER, KEEP, STORED = 2, 0.2, 0.5  # as the predictors are trained, so that every base meets the same controls
PLAIN = "none"
LEARNED = ("learned image", "learned answer", "learned both")


def rows(predictors: Path | None, controls: bool) -> Iterator[Row]:
    """The plans a base is measured under."""
    if controls:
        yield Row(PLAIN, None, 1.0, PLAIN)
        for name in ("fastv", "random", "uniform"):
            yield Row(name, LAYER, KEEP, f"{name}(layer={LAYER}, keep={KEEP})")
        yield Row("random answer", LAYER, 1.0, f"random_gate(layer={LAYER}, keep={STORED}, recent=0)")
        yield Row(
            "random both",
            LAYER,
            KEEP,
            f"random(layer={LAYER}, keep={KEEP}) | random_gate(layer={LAYER}, keep={STORED}, recent=0)",
        )
    if predictors is not None:
        image = f"dynamic_image(layer={LAYER}, keep={KEEP}, path={json.dumps(str(predictors))})"
        answer = f"dynamic_text(layer={LAYER}, path={json.dumps(str(predictors))})"
        for name, plan in zip(LEARNED, (image, answer, f"{image} | {answer}"), strict=True):
            yield Row(name, LAYER, 1.0 if plan == answer else KEEP, plan)


def run(label: str, model: Path | None, predictors: Path | None, controls: bool, questions: int, out: Path) -> None:
    """Measure a base under what the file does not hold yet."""
    provenance: dict[str, Any] = {}
    if predictors is not None:
        config = read_config(str(predictors))
        if (config.layer, config.keep, config.text_keep) != (LAYER, KEEP, STORED):
            raise SystemExit(f"{predictors} was trained for other rates than layer {LAYER}, {KEEP} and {STORED}")
        provenance = dict(config.provenance)
    elif model is not None:
        provenance = json.loads((model.parent / "control.json").read_text(encoding="utf-8"))
    base, processor = load_demo(model)
    report: dict[str, Any] = {
        "what": "bases of the demo model trained with learned, random and no masks; exact match", "device": "cpu",
        "dtype": "float32", "questions_per_task": questions, "seed": SEED, "versions": versions(), "bases": {},
    }  # fmt: skip
    report = resumed(out, report, ("questions_per_task", "seed", "versions"))
    asked = [(sample, question) for sample in held_out_samples(questions, SEED) for question in sample.questions]
    prompts = Prompts.of(processor, asked)
    report["tasks"] = prompts.tasks
    entry = report["bases"].setdefault(label, {"provenance": provenance, "rows": {}})
    for row in rows(predictors, controls):
        if row.method in entry["rows"]:
            continue
        right = prompts.right(base, row)
        known = {"plan": row.plan.replace(str(predictors), "..."), "right": marks(right)}
        if "answer" in row.method or "both" in row.method:
            known["stored"] = stored_share(base, prompts, row.plan)
        entry["rows"][row.method] = known
        write_results(out, report)
        print(f"{label}: {row.method:16s} {right.mean():.3f}", flush=True)


PAGE = """# Bases trained along, measured

Made by `python -m benchmarks.trained_bases`; raw file with every answer: `{raw}`. Exact match of the demo model on {count:,}
held-out questions ({per_task} of each task). Every column is a plan: before decoder layer {layer} {keep:.0%} of each picture's
tokens stay (*image*), or the later layers store a part of the answer (*answer*; in brackets how much of long answers).
Controls store {stored:.0%}. A cell's interval is a paired 95 % bootstrap of the difference, in points, to the shipped base
without a plan. *Long* answers: {long}.

{bases}

## All questions

{everything}

## Long answers

{longs}

## What it says

{verdict}
"""


def write_page(report: dict[str, Any], raw: Path, out: Path) -> None:
    """Write the page."""
    tasks = np.array(report["tasks"])
    is_long = np.isin(tasks, LONG)
    plain = answers(next(base["rows"][PLAIN] for base in report["bases"].values() if PLAIN in base["rows"]))
    names = [
        PLAIN,
        "fastv",
        "random",
        "uniform",
        "learned image",
        "random answer",
        "learned answer",
        "random both",
        "learned both",
    ]
    tables = []
    for part in (np.ones_like(is_long), is_long):
        lines = [
            [label, *(_cell(base["rows"].get(name), plain, part) for name in names)] for label, base in report["bases"].items()
        ]
        tables.append(table(["base", *names], lines))
    text = PAGE.format(
        raw=raw.as_posix(), count=len(tasks), per_task=report["questions_per_task"], layer=LAYER, keep=KEEP, stored=STORED,
        long=", ".join(LONG), everything=tables[0], longs=tables[1], verdict=_verdict(report["bases"], is_long),
        bases="\n".join(f"- **{label}**: {_trained(base['provenance'])}" for label, base in report["bases"].items()),
    )  # fmt: skip
    out.write_text(text, encoding="utf-8")


def _trained(provenance: dict[str, Any]) -> str:
    settings = provenance.get("settings", {})
    if not settings:
        return "as shipped"
    said = "the base is frozen" if settings["mode"] == "predictors" else f"the base trains at rate {settings['base_rate']:g}"
    masks = {"learned": "learned masks", "random": "masks drawn by chance", "none": "no masks"}[settings["masks"]]
    return f"{said}, {masks}, {provenance['steps']} steps of {settings['batch_size']} rows, seed {settings['seed']}"


def _cell(row: dict[str, Any] | None, plain: Any, part: Any) -> str:
    if row is None:
        return ""
    right = answers(row)[part]
    low, high = interval(100.0 * (right - plain[part]))
    share = f" ({row['stored']:.0%})" if "stored" in row else ""
    return f"{right.mean():.3f} [{low:+.1f}, {high:+.1f}]{share}"


def _verdict(bases: dict[str, Any], is_long: Any) -> str:
    """Learned against chance on the same base, and each trained base against the others, in words."""
    said = []
    everything = np.ones_like(is_long)
    # Predictors of another seed stand on the same base.
    shipped = next(base["rows"] for base in bases.values() if not _trains_base(base) and "random" in base["rows"])
    for label, base in bases.items():
        rows = base["rows"]
        if "learned image" not in rows:
            continue
        controls = rows if "random" in rows else shipped
        for learned, control, part, where in (
            ("learned image", "random", everything, "all questions"),
            ("learned answer", "random answer", is_long, "long answers"),
            ("learned both", "random both", everything, "all questions"),
        ):
            said.append(f"- {label}: {learned} against {control} on {where}: {_told(rows[learned], controls[control], part)}.")
    trained = {base["provenance"]["settings"]["masks"]: base["rows"] for base in bases.values() if _trains_base(base)}
    for masks, own, other in (("random", "learned both", "random both"), ("none", PLAIN, PLAIN)):
        if {"learned", masks} <= set(trained):
            told = _told(trained["learned"][own], trained[masks][other], everything)
            word = {"random": "random masks", "none": "no masks"}[masks]
            said.append(f"- base trained with learned masks ({own}) against one with {word} ({other}): {told}.")
    return "\n".join(said)


def _trains_base(base: dict[str, Any]) -> bool:
    return base["provenance"].get("settings", {}).get("mode") == "full"


def _told(row: dict[str, Any], other: dict[str, Any], part: Any) -> str:
    own, others = answers(row)[part], answers(other)[part]
    low, high = interval(100.0 * (own - others))
    word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    return f"{word}, {difference(own, others)} points"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--label", required=True, help="the name of the base in the page")
    measure.add_argument("--model", type=Path, help="a trained demo model; the shipped one if left out")
    measure.add_argument("--predictors", type=Path, help="trained with this base")
    measure.add_argument("--no-controls", action="store_true", help="only what the predictors choose: for another seed")
    measure.add_argument("--questions", type=int, default=60, help="per task")
    measure.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--out", type=Path, default=Path("docs/trained_bases.md"))
    options = parser.parse_args()
    if options.command == "run":
        run(options.label, options.model, options.predictors, not options.no_controls, options.questions, options.out)
    else:
        write_page(json.loads(options.results.read_text(encoding="utf-8")), options.results, options.out)


if __name__ == "__main__":
    main()
