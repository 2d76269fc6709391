"""What studies of answers share: a raw file that grows row by row, and the tables of the page made from it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.evaluate.intervals import interval

Answers = npt.NDArray[np.int_]


def resumed(out: Path, report: dict[str, Any], same: Sequence[str]) -> dict[str, Any]:
    """The report that the file holds, or the new one where there is no file.

    Raises:
        SystemExit: if the file's report differs in one of the entries that are to be the `same`.
    """
    if not out.exists():
        return report
    before: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if any(before[key] != report[key] for key in same):
        raise SystemExit(f"{out} holds another study; name a new file")
    return before


def marks(right: npt.NDArray[np.bool_]) -> str:
    """Every answer as one character, which keeps the file small and all comparisons paired."""
    return "".join("1" if value else "0" for value in right)


def graded(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Entries of a row: its accuracy, and every answer."""
    return {"accuracy": float(right.mean()), "right": marks(right)}


def answers(row: dict[str, Any]) -> Answers:
    """Of a row, 1 for each right answer and 0 for each wrong one."""
    return np.array([int(mark) for mark in row["right"]])


def table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. A vertical line in a plan would end its cell."""
    rows = (heading, ["---"] * len(heading), *lines)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def difference(first: Answers, second: Answers) -> str:
    """The paired difference in points with its 95 % interval."""
    delta = 100.0 * (first - second)
    low, high = interval(delta)
    return f"{delta.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def beside(own: Answers, plain: Answers) -> str:
    """An accuracy, and in brackets its difference to the plain model."""
    return f"{own.mean():.3f} ({difference(own, plain)})"


def study_command(
    about: str | None,
    questions: int,
    page_of: str,
    run: Callable[[int, Path, Path | None], None],
    write_page: Callable[[dict[str, Any], Path, Path], None],
) -> None:
    """The command line of a study of the demo model: `run` measures so many questions a task, `page` writes its page."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--questions", type=int, default=questions, help="per task")
    measure.add_argument("--out", type=Path, required=True)
    measure.add_argument("--model", type=Path, default=None, help="a trained demo model; the shipped one if left out")
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--out", type=Path, default=Path(page_of))
    options = parser.parse_args()
    if options.command == "run":
        run(options.questions, options.out, options.model)
    else:
        write_page(json.loads(options.results.read_text(encoding="utf-8")), options.results, options.out)
