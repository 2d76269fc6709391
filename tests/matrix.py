"""A pytest plugin: what was proved for which family, method, backend, batch, padding and cache, as a table behind the run.

Tests marked `matrix` are counted in it. Their parameters `family`, `plan`, `backend` and `batch` say what they ran; the marker
says the rest: `@pytest.mark.matrix(caches=("dynamic", "uncached"), padding="left")`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from foveate.methods import has
from tests.examples import stages_named

_CACHES = ("uncached", "dynamic", "static", "compiled", "quantized")
_EMULATED = {"emulated_flash": "flash*", "emulated_flex": "flex*"}
_SHORT = {"uncached": "none", "dynamic": "dyn", "static": "stat", "compiled": "comp", "quantized": "quant"}
Cell = tuple[str, str, str, str, str]
_AXES = ("family", "method", "backend", "batch and padding", "cache")
_COLLECTED = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="print the matrix of what was proved")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "matrix(caches, padding): counted in the matrix that --matrix prints")


def remember(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes what there is to prove, whatever of it runs now. Called once `nightly` is marked."""
    cells = {cell for item in items if (marker := item.get_closest_marker("matrix")) for cell in _cells(item, marker)}
    nightly = sum(item.get_closest_marker("nightly") is not None for item in items)
    config.stash[_COLLECTED] = {"cells": sorted(cells), "nightly": nightly}
    if hasattr(config, "workeroutput"):
        config.workeroutput["matrix"] = config.stash[_COLLECTED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker collected, at the process that collects nothing itself."""
    if "matrix" in getattr(node, "workeroutput", {}):
        node.config.stash[_COLLECTED] = node.workeroutput["matrix"]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("matrix")
    if marker is not None:
        item.user_properties.append(("matrix", list(_cells(item, marker))))


def _cells(item: Any, marker: pytest.Mark) -> Iterator[Cell]:
    params = item.callspec.params
    plan = str(params.get("plan", marker.kwargs.get("plan", "")))
    named = getattr(item.module, "PLANS", {})
    text = named.get(plan, plan) if isinstance(named, dict) else plan
    methods = sorted({*stages_named(text)} or {word for word in text.split() if has(word)}) or ["?"]
    if "effect=mask" in text:
        methods = [f"{method} mask" for method in methods]
    backend = str(params.get("backend", "sdpa"))
    batch = "1" if params.get("batch", 3) == 1 else f"n {marker.kwargs.get('padding', 'left')}"
    for method in methods:
        for cache in marker.kwargs.get("caches", ("dynamic",)):
            yield params["family"], method, _EMULATED.get(backend, backend), batch, cache


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--matrix"):
        return
    counts: dict[Cell, list[int]] = defaultdict(lambda: [0, 0])
    for outcome, place in (("passed", 0), ("failed", 1)):
        for report in terminalreporter.stats.get(outcome, []):
            for name, cells in getattr(report, "user_properties", []):
                if name == "matrix":
                    for cell in cells:
                        counts[tuple(cell)][place] += 1
    if counts:
        terminalreporter.section("what was proved: checks passed (failed with F)")
        for line in table(counts):
            terminalreporter.write_line(line)
        for line in pairs_covered(counts, **config.stash[_COLLECTED]):
            terminalreporter.write_line(line)


def pairs_covered(counts: dict[Cell, list[int]], cells: list[Cell], nightly: int) -> Iterator[str]:
    """The lines that say how many pairs of values met in a check that passed, of those that can meet."""
    for one, other in combinations(range(len(_AXES)), 2):
        every = {(cell[one], cell[other]) for cell in cells}
        met = {(cell[one], cell[other]) for cell, (passed, _) in counts.items() if passed}
        yield f"pairs of {_AXES[one]} x {_AXES[other]}: {len(met)} of {len(every)}"
    yield f"cases of products left to make test-nightly: {nightly}"


def table(counts: dict[Cell, list[int]]) -> Iterator[str]:
    """The lines of the table: families and methods down, cache, backend and batch across."""
    rows = sorted({cell[:2] for cell in counts})
    columns = sorted({cell[2:] for cell in counts}, key=lambda cell: (_CACHES.index(cell[2]), cell[0], cell[1]))
    left = max(len(family) for family, _ in rows) + 1
    heads = [(_SHORT[cache], backend, batch) for backend, batch, cache in columns]
    widths = [max(len(part) for part in head) + 1 for head in heads]
    for line in range(3):
        label = ("cache", "backend", "batch, padding")[line]
        yield f"{label:<{left + 13}}" + "".join(f"{head[line]:>{width}}" for head, width in zip(heads, widths, strict=True))
    for family, method in rows:
        cells = []
        for column, width in zip(columns, widths, strict=True):
            passed, failed = counts.get((family, method, *column), (0, 0))
            cells.append(f"{f'{failed}F' if failed else passed or '.':>{width}}")
        yield f"{family:<{left}}{method:<13}" + "".join(cells)
    yield "batch: 1 row, or n ragged rows padded on that side; '.' did not run."
    yield "* mask contracts of the kernel, emulated on the CPU through transformers' registries; eager and sdpa are real."
    yield "comp: static cache, decode steps traced with fullgraph; quant: fp8 and quanto caches."
