"""Who chooses best: every selector at equal tokens on the embedded demo model, beside random, uniform and fewer pixels.

    python -m benchmarks.selectors run --questions 54 --out benchmarks/results/NAME.json
    python -m benchmarks.selectors page benchmarks/results/NAME.json --out docs/selectors.md

`run` can be stopped and repeated: rows that the file holds already are not measured again. Exact match on held-out pictures as
in `benchmarks.quality`; agreement with the plain model's own greedy tokens along the true answer; and how far the distribution
of the first answer token moved (Kullback-Leibler, in nats).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foveate
from benchmarks._results import write_results
from benchmarks._study import answers, beside, difference, graded, resumed, study_command, table
from benchmarks.quality import SEED, Prompts, Smaller, answer_logits, answered, seeded
from benchmarks.selection import selectors
from foveate.core.method import TokenMethod
from foveate.core.site import SiteKind
from foveate.demo.evaluation import held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.demo.packing import IGNORED
from foveate.evaluate.intervals import interval

KEEPS, MIDDLE = (0.5, 0.25, 0.1, 0.05), 4
BEFORE, INSIDE, PICTURE = "before the language model", f"before decoder layer {MIDDLE}", "a smaller picture"


@dataclass(frozen=True)
class Row:
    """One point: who chooses, where, how much stays; a plan, or fewer pixels for the plain model."""

    method: str
    where: str
    keep: float
    plan: str

    @property
    def name(self) -> str:
        return f"{self.method}, {self.where}, keep {self.keep}"


def rows() -> Iterator[Row]:
    """Every point of the study, the plain model first."""
    yield Row("plain", "", 1.0, "none")
    chosen = {name: method for name, method in selectors().items() if "split" not in name}
    for keep in KEEPS:
        yield Row("downsampled picture", PICTURE, keep, "none")
        for name, method in chosen.items():
            if SiteKind.PRE_LLM in method.sites:
                yield Row(name, BEFORE, keep, f"{name}(site=pre_llm, keep={keep})")
            if _looks_inside(method):
                yield Row(name, INSIDE, keep, f"{name}(layer={MIDDLE}, keep={keep})")
        # A third from the middle on: two thirds of what enters, on average over the layers.
        yield Row("vscan", BEFORE, keep, f"vscan(layer={MIDDLE}, keep={1.5 * keep:g})")


def _looks_inside(method: TokenMethod) -> bool:
    """Whether a method needs the language model's layers, or is a control."""
    return SiteKind.LLM_LAYER in method.sites and (SiteKind.PRE_LLM not in method.sites or method.name in ("random", "uniform"))


@dataclass
class Plain:
    """The plain model's own answers: greedy tokens and the first token's distribution, batch by batch."""

    tokens: list[torch.Tensor]
    first: list[torch.Tensor]


def measure(model: Any, prompts: Prompts, row: Row, plain: Plain | None) -> tuple[dict[str, Any], Plain]:
    """Entries of a row, and what others are compared with."""
    count = len(prompts.tasks)
    right, agreement, divergence = np.zeros(count, dtype=bool), np.zeros(count), np.zeros(count)
    own = Plain([], [])
    for number, (members, length, batch) in enumerate(prompts.batches):
        plan = seeded(row.plan, number)
        with foveate.attach(model, plan) if plan != "none" else nullcontext() as attachment:
            logits = answer_logits(model, batch, length, attachment)
        right[members] = answered(batch, length, logits)
        own.tokens.append(logits.argmax(-1))
        own.first.append(logits[:, 0].double().log_softmax(-1))
        before = own if plain is None else plain
        graded_here = batch.is_graded[:, length:] & (batch.labels[:, length:] != IGNORED)
        same = ((own.tokens[-1] == before.tokens[number]) & graded_here).sum(1) / graded_here.sum(1)
        agreement[members] = same.numpy()
        moved = (before.first[number].exp() * (before.first[number] - own.first[-1])).sum(-1)
        divergence[members] = moved.numpy()
    extra = {"agreement": float(agreement.mean()), "first_token_kl": float(divergence.mean())}
    return graded(right) | extra, own


def run(questions: int, out: Path, folder: Path | None) -> None:
    """Measure every row that the file does not hold yet, and write the file after each."""
    model, processor = load_demo(folder)
    asked = [(sample, question) for sample in held_out_samples(questions, SEED) for question in sample.questions]
    report: dict[str, Any] = {
        "what": "exact match of greedy answers of the embedded demo model under every selector, held-out pictures",
        "questions_per_task": questions, "seed": SEED, "device": "cpu", "dtype": "float32", "attention": "sdpa",
        "layers": model.config.text_config.num_hidden_layers, "visual_tokens": model.config.image_seq_length,
        "versions": versions(), "rows": [],
    }  # fmt: skip
    report = resumed(out, report, ("questions_per_task", "seed", "layers", "versions"))
    prompts = Prompts.of(processor, asked)
    report["tasks"] = prompts.tasks
    done = {row["name"] for row in report["rows"]}
    _, plain = measure(model, prompts, next(rows()), None)
    for row in rows():
        if row.name in done:
            continue
        used = prompts
        if row.where == PICTURE:
            used = Prompts.of(processor, [(Smaller(sample, row.keep), question) for sample, question in asked])
        entries, _ = measure(model, used, row, plain)
        report["rows"].append({"name": row.name, **asdict(row), **entries})
        write_results(out, report)
        print(f"{row.name:60s} {entries['accuracy']:.3f}", flush=True)


PAGE = """# Who chooses best

Exact match of the greedy answer of the [embedded demo model](../foveate/demo/assets/model/README.md), {questions} held-out
questions ({per_task} of each of {tasks} tasks), every question in a prompt of its own, {visual} visual tokens a picture. Plain
model: **{plain:.3f}**; in brackets points against it on the same questions with the 95 % interval of the paired bootstrap.
Random draws one of five seeds per batch. Every selector has its default options. Raw file with every single answer: `{raw}`.
Made by `python -m benchmarks.selectors`.

This is a small model on drawn pictures. What wins here need not win on a 7B model and photographs; published numbers of each
method stand in [choosing](choosing.md).

## {before}

{before_table}

{before_said}

## {inside}

All layers below it see every token, so these rows keep more on average than those above; compare them with random at the same
place.

{inside_table}

{inside_said}

## By task

Accuracy {before} at keep {task_keep}; a star marks where a selector and random differ beyond their paired 95 % interval.

{by_task}
"""
_TASK_KEEP = 0.1


def write_page(report: dict[str, Any], raw: Path, out: Path) -> None:
    """The tables, best first, and who wins and loses by name."""
    found = {(row["method"], row["where"], row["keep"]): row for row in report["rows"]}
    tasks = np.array(report["tasks"])
    plain = answers(found["plain", "", 1.0])

    def ranked(where: str) -> tuple[str, str]:
        names = list(dict.fromkeys(row["method"] for row in report["rows"] if row["where"] in (where, PICTURE)))
        means = {
            name: np.mean([_row(found, name, where, keep)["accuracy"] for keep in KEEPS if _row(found, name, where, keep)])
            for name in names
        }
        names.sort(key=lambda name: -means[name])
        lines = []
        for name in names:
            own = [_row(found, name, where, keep) for keep in KEEPS]
            cells = ["not measured" if row is None else beside(answers(row), plain) for row in own]
            last = next((row for row in reversed(own) if row is not None), None)
            more = ["", ""] if last is None else [f"{last['agreement']:.3f}", f"{last['first_token_kl']:.3f}"]
            lines.append([f"`{name}`" if name != "downsampled picture" else name, *cells, *more])
        heading = [
            "selector",
            *(f"keep {keep}" for keep in KEEPS),
            f"agreement at {KEEPS[-1]}",
            f"first-token KL at {KEEPS[-1]}",
        ]
        return table(heading, lines), _verdicts(found, where, names)

    before_table, before_said = ranked(BEFORE)
    inside_table, inside_said = ranked(INSIDE)
    page = PAGE.format(
        questions=f"{len(tasks):,}", per_task=report["questions_per_task"], tasks=len(set(report["tasks"])),
        visual=report["visual_tokens"], plain=plain.mean(), raw=raw.as_posix(), before=BEFORE.capitalize(),
        inside=INSIDE.capitalize(),
        before_table=before_table, before_said=before_said, inside_table=inside_table, inside_said=inside_said,
        task_keep=_TASK_KEEP, by_task=_by_task(found, tasks, plain),
    )  # fmt: skip
    out.write_text(page.replace("Accuracy Before", "Accuracy before"), encoding="utf-8")


def _row(found: dict[Any, Any], name: str, where: str, keep: float) -> dict[str, Any] | None:
    row: dict[str, Any] | None = found.get((name, where, keep)) or found.get((name, PICTURE, keep))
    return row


def _verdicts(found: dict[Any, Any], where: str, names: list[str]) -> str:
    """For each share, who is clearly better and who clearly worse than random."""
    said = []
    for keep in KEEPS:
        random = _row(found, "random", where, keep)
        if random is None:
            continue
        better, worse = [], []
        for name in names:
            row = _row(found, name, where, keep)
            if row is None or name == "random":
                continue
            low, high = interval(100.0 * (answers(row) - answers(random)))
            (better if low > 0 else worse if high < 0 else []).append(f"{name} ({difference(answers(row), answers(random))})")
        said.append(
            f"- keep {keep}: better than random: {', '.join(better) or 'nobody'}; worse: {', '.join(worse) or 'nobody'}."
        )
    return "\n".join(said)


def _by_task(found: dict[Any, Any], tasks: Any, plain: Any) -> str:
    names = [name for name, where, keep in found if where in (BEFORE, PICTURE) and keep == _TASK_KEEP]
    random = answers(found["random", BEFORE, _TASK_KEEP])
    lines = []
    for task in dict.fromkeys(tasks.tolist()):
        own = tasks == task
        cells = [f"{plain[own].mean():.2f}"]
        for name in names:
            right = answers(_row(found, name, BEFORE, _TASK_KEEP) or {})
            low, high = interval(100.0 * (right[own] - random[own]))
            cells.append(f"{right[own].mean():.2f}" + (" *" if name != "random" and (low > 0 or high < 0) else ""))
        lines.append([task, *cells])
    return table(["task", "plain", *names], lines)


def main() -> None:
    """Command line."""
    study_command(__doc__, 54, "docs/selectors.md", run, write_page)


if __name__ == "__main__":
    main()
