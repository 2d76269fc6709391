"""Long answers of the demo model under trained predictors, FastV and controls: what Dynamic-LLaVA's Table 3 measures.

    python -m benchmarks.generation run --predictors FOLDER --out benchmarks/results/NAME.json
    python -m benchmarks.generation page benchmarks/results/NAME.json --out docs/generation.md

The protocol is that of `foveate eval generation`. Answers are scored by ROUGE-L, and by METEOR too where nltk has its data
(`python -m nltk.downloader punkt_tab wordnet`). Without --predictors those that ship are measured; `--model` is the demo
model that the predictors were trained with, if its own weights learned too. `run` can be stopped and repeated: what the file
holds already is not measured again. `--smoke` takes a few samples and seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import foveate
from benchmarks._generation_page import write_page
from benchmarks._results import write_results
from benchmarks.quality import RANDOM_SEEDS, SEED, seeded
from foveate.cli.rounds import demo_samples
from foveate.demo.evaluation import generate_answers, held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.demo.long_answers import CAPTION, LONG_TASKS
from foveate.demo.questions import Question
from foveate.evaluate.generation import Sample, Score, score_samples
from foveate.evaluate.overlap import OverlapScore, meteor, rouge_l
from foveate.predictors import PredictorConfig, read_config

CAPTIONS, OTHERS, NEW_TOKENS, BATCH = 300, 60, 160, 32
SHIPPED = "demo"


def plans_of(config: PredictorConfig, path: str) -> dict[str, str]:
    """Every plan by its name, those apart that store as much as the learned gate does."""
    layer, keep = config.layer, config.keep
    own = f"path={json.dumps(path)}"
    plans = {"plain": "none", "learned image": f"dynamic_image(layer={layer}, keep={keep}, {own})"}
    if config.text_keep is not None:
        plans["learned answer"] = f"dynamic_text(layer={layer}, {own})"
        plans["both learned"] = f"dynamic_llava({own}, rounding=half_up)"  # as many tokens as the other plans
    plans |= {f"{name} image": f"{name}(layer={layer}, keep={keep})" for name in ("fastv", "random", "uniform")}
    gates = {f"{name} gate": f"{name}_gate(layer={layer}, keep=0.5, recent=0)" for name in ("random", "stride")}
    both = {"fastv image + random gate": f"{plans['fastv image']} | {gates['random gate']}"}
    return plans | gates | both


def fair_plans(config: PredictorConfig, share: float) -> dict[str, str]:
    """Controls that store the share of the answer that the learned gate stores."""
    layer = config.layer
    gates = {
        f"{name} gate, as much": f"{name}_gate(layer={layer}, keep={share:.3f}, recent=0)" for name in ("random", "stride")
    }
    image = f"fastv(layer={layer}, keep={config.keep})"
    return gates | {"fastv image + random gate, as much": f"{image} | {gates['random gate, as much']}"}


def stored_share(scores: dict[str, list[float]]) -> float:
    """Which share of an answer's tokens a gate stores; the newest is not counted, as it is computed in any case."""
    return (sum(scores["computed"]) - len(scores["computed"])) / (sum(scores["read"]) - len(scores["read"]))


@dataclass(frozen=True)
class Asked:
    """The samples of one task: as they are read one by one, and as questions that are answered in batches."""

    samples: Sequence[Sample]
    questions: Sequence[tuple[Any, Question]]

    @classmethod
    def of(cls, model: Any, processor: Any, task: str, count: int) -> Asked:
        """`count` held-out questions of a task."""
        held_out = held_out_samples(count, SEED, (task,))
        questions = [(sample, question) for sample in held_out for question in sample.questions]
        return cls(demo_samples(model, processor, task, count, SEED), questions)


def measured(
    model: Any, processor: Any, asked: Asked, plan: str, overlaps: Sequence[OverlapScore], new_tokens: int
) -> dict[str, list[float]]:
    """The numbers of every sample under a plan, by name; random choices have one of several seeds.

    Answers are generated in batches, the question after the earlier turns in one prompt.
    """
    numbers = range(len(asked.samples))
    groups = [numbers] if seeded(plan, 0) == plan else [numbers[seed::RANDOM_SEEDS] for seed in range(RANDOM_SEEDS)]
    found: dict[int, dict[str, float]] = {}
    for seed, group in enumerate(groups):
        own = seeded(plan, seed)
        scores = score_samples(model, [asked.samples[number] for number in group], own)
        answers: list[str] = []
        with foveate.attach(model, own) if own != "none" else nullcontext():
            for start in range(0, len(group), BATCH):
                chosen = [asked.questions[number] for number in group[start : start + BATCH]]
                answers += generate_answers(model, processor, chosen, new_tokens)
        for number, reading, answer in zip(group, scores, answers, strict=True):
            truth = asked.questions[number][1].answer
            found[number] = _numbers(reading) | {score.name: round(score.of(answer, truth), 4) for score in overlaps}
    return {name: [found[number][name] for number in numbers] for name in found[0]}


def _numbers(score: Score) -> dict[str, Any]:
    read, computed = score.output_tokens
    names = ("kv_bytes", "output_kv_bytes", "last_pass_flops", "output_flops")
    return {
        "perplexity": float(f"{score.perplexity:.6g}"), "read": read, "computed": computed,
        **{name: getattr(score, name) for name in names},
    }  # fmt: skip


def run(
    predictors: str, base: Path | None, counts: dict[str, int], out: Path, new_tokens: int = NEW_TOKENS, progress: bool = True
) -> None:
    """Measure what the file does not hold yet.

    Args:
        predictors: a folder, or "demo" for those that ship.
        base: the folder of a demo model; None for the shipped one.
        counts: samples of each task.
        out: the raw file.
        new_tokens: of the longest generated answer.
        progress: show how far it is.
    """
    model, processor = load_demo(base)
    config, overlaps = read_config(predictors), [score for score in (meteor(), rouge_l()) if score is not None]
    report: dict[str, Any] = {
        "what": "long answers of the demo model under plans", "samples": counts, "seed": SEED, "random_seeds": RANDOM_SEEDS,
        "device": "cpu", "dtype": "float32", "overlap_scores": [score.name for score in overlaps], "new_tokens": new_tokens,
        "versions": versions(),
        "layer": config.layer, "keep": config.keep, "text_keep": config.text_keep, "provenance": dict(config.provenance),
        "rows": [],
    }  # fmt: skip
    if out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        if any(before.get(key) != report[key] for key in report if key != "rows"):
            raise SystemExit(f"{out} holds another study; name a new file")
        report = before
    with Progress(
        TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True, disable=not progress,
    ) as bars:  # fmt: skip
        bar = bars.add_task("", total=len(counts) * (len(plans_of(config, predictors)) + len(fair_plans(config, 1.0))))
        for task, count in counts.items():
            asked = Asked.of(model, processor, task, count)
            known = {row["name"]: row["scores"] for row in report["rows"] if row["task"] == task}
            while True:
                plans = plans_of(config, predictors)
                if "learned answer" in known:
                    plans |= fair_plans(config, stored_share(known["learned answer"]))
                name = next((name for name in plans if name not in known), None)
                if name is None:
                    break
                bars.update(bar, description=f"{task}: {name}")
                known[name] = measured(model, processor, asked, plans[name], overlaps, new_tokens)
                shown = plans[name] if predictors == SHIPPED else plans[name].replace(json.dumps(predictors), '"..."')
                report["rows"].append({"task": task, "name": name, "plan": shown, "scores": known[name]})
                write_results(out, report)
                bars.advance(bar)
                shown_scores = ("perplexity", *report["overlap_scores"])
                means = [f"{key} {sum(known[name][key]) / count:.3f}" for key in shown_scores]
                print(f"{task:10s} {name:36s} {'  '.join(means)}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--predictors", default=SHIPPED, help="a folder; those that ship if left out")
    measure.add_argument("--model", type=Path, default=None, help="a trained demo model; the shipped one if left out")
    measure.add_argument("--captions", type=int, default=CAPTIONS)
    measure.add_argument("--others", type=int, default=OTHERS, help="of each other long task")
    measure.add_argument("--smoke", action="store_true", help="two samples of each task, short answers")
    measure.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--out", type=Path, default=Path("docs/generation.md"))
    options = parser.parse_args()
    if options.command == "page":
        write_page(json.loads(options.results.read_text(encoding="utf-8")), options.results, options.out)
        return
    counts = {task: options.captions if task == CAPTION else options.others for task in LONG_TASKS}
    if options.smoke:
        counts = dict.fromkeys(counts, 2)
    run(options.predictors, options.model, counts, options.out, 8 if options.smoke else NEW_TOKENS)


if __name__ == "__main__":
    main()
