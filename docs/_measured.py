"""What raw files of measurements say of a method."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
# Pages that sum up; the others name their raw file at their top.
SUMMARIES = ("results.md", "index.md", "choosing.md", "limits.md")
# Longer tables of measurements are folded.
MOST_ROWS = 8


@dataclass(frozen=True)
class Measured:
    """One row of a raw file. `page` is the study that shows it, with its intervals."""

    raw: str
    page: str
    plan: str
    what: str
    value: float
    plain: float
    samples: int


@cache
def measurements() -> tuple[Measured, ...]:
    """Every quality under a plan in the raw files that a page of results names."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8").partition("\n## ")[0]  # the raw file is named at the top of its study
        if page.name in SUMMARIES:
            continue
        for name in sorted(set(re.findall(r"benchmarks/results/([\w.-]+\.json)", text))):
            if (RESULTS / name).is_file():
                report = json.loads((RESULTS / name).read_text(encoding="utf-8"))
                found += list(rows_of(report, name, page.stem))
    return tuple(found)


def rows_of(report: Any, raw: str, page: str) -> Iterator[Measured]:
    """The rows of one raw file: exact matches, or the perplexities of captions."""
    rows = report.get("rows", ()) if isinstance(report, dict) else ()
    exact = [row for row in rows if "accuracy" in row and row.get("right")]
    plain = next((row["accuracy"] for row in exact if row["plan"] == "none"), None)
    if plain is not None:
        for row in exact:
            if row["plan"] != "none":
                yield Measured(raw, page, row["plan"], "exact match", row["accuracy"], plain, len(row["right"]))
    captions = [row for row in rows if row.get("task") == "caption" and "perplexity" in row.get("scores", {})]
    means = {row["plan"]: sum(row["scores"]["perplexity"]) / len(row["scores"]["perplexity"]) for row in captions}
    for plan, mean in means.items():
        if plan != "none" and "none" in means:
            count = len(captions[0]["scores"]["perplexity"])
            yield Measured(raw, page, plan, "perplexity of captions, lower is better", mean, means["none"], count)


def quality(name: str, wanted: Sequence[str]) -> str:
    """The rows of plans in which this method acts alone."""
    rows = [row for row in measurements() if set(re.findall(r"(\w+)\(", row.plan)) == set(wanted)]
    if not rows:
        return f"Not measured: no raw file has a plan of `{name}` alone." + beside(name)
    lines = ["| plan | what | plain | under the plan | difference | samples | study |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        change = row.value - row.plain
        shown = f"{100 * change:+.1f} points" if row.what == "exact match" else f"{change:+.3f}"
        cell = row.plan.replace("|", r"\|")
        lines.append(
            f"| `{cell}` | {row.what} | {row.plain:.3f} | {row.value:.3f} | {shown} | {row.samples:,} "
            f"| [{row.page}](../{row.page}.md) |"
        )
    raws = ", ".join(f"`benchmarks/results/{raw}`" for raw in dict.fromkeys(row.raw for row in rows))
    words = (
        "On the [demo model](../demo_model.md), a small model on drawn pictures: it says how methods compare, not what a 7B "
        f"model loses. Intervals and controls are in the studies. Raw files: {raws}. On real checkpoints: not measured."
    )
    head, body = lines[:2], lines[2:]
    if len(rows) <= MOST_ROWS:
        return words + "\n\n" + "\n".join(lines)
    halves = [line for line in body if re.search(r"keep=0\.5\b", line)][:MOST_ROWS]
    shown = "\n".join([*head, *halves])
    folded = "\n".join(f"    {line}" for line in lines)
    return f'{words}\n\n{shown}\n\n??? note "All {len(rows)} measured plans"\n\n{folded}'


def beside(name: str) -> str:
    """Where plans that hold a method with others were measured."""
    pages = sorted({row.page for row in measurements() if re.search(rf"\b{name}\(", row.plan)})
    return "" if not pages else " Together with others: " + ", ".join(f"[{page}](../{page}.md)" for page in pages) + "."
