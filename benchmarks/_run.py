"""What the benchmarks share: options, cells, turns, budget, progress and the raw file."""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks import _models as models
from benchmarks._budget import Budget
from benchmarks._models import Impossible, Prompt
from benchmarks._results import FOLDER, ResultFile, free_name, header
from benchmarks._statistics import paired_ratio, quartiles
from benchmarks._timing import Spent, peak_memory, turns
from foveate.api import estimate
from foveate.api.measuring import check_plan
from foveate.cost.estimate import CostEstimate
from foveate.errors import FoveateError
from foveate.families import family_for
from foveate.spec import parse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN = "none"
# Free device memory beyond weights that a cell needs at the very least.
_HEADROOM = 1.1


@dataclass(frozen=True)
class Cell:
    """One model, prompt and batch, on which all plans take turns."""

    model: str
    asked_tokens: int
    batch: int
    prompt: Prompt
    estimates: dict[str, CostEstimate | None]
    work: float
    benchmark: Benchmark  # with the length of the answer


@dataclass(frozen=True)
class Sample:
    """One turn: times by name, and facts that do not vary."""

    times: dict[str, Spent]
    facts: dict[str, Any]


class Benchmark(ABC):
    """A benchmark: what one turn measures and what theory says about it."""

    name: ClassVar[str]
    what: ClassVar[str]
    keeps: ClassVar[tuple[str, ...]]
    tokens: ClassVar[dict[str, tuple[int, ...]]]  # visual tokens by kind of device

    def __init__(self, new_tokens: int) -> None:
        self.new_tokens = new_tokens

    @abstractmethod
    def sample(self, model: Any, inputs: dict[str, Any], plan: str, device: torch.device) -> Sample:
        """Run one turn."""

    @abstractmethod
    def theory(self, model: Any, prompt: Prompt, plan: str, batch: int, cost: CostEstimate) -> dict[str, float]:
        """Ratios of plan to plain that theory gives, by the name of the time they belong to."""

    @abstractmethod
    def work(self, estimates: Sequence[CostEstimate | None]) -> float:
        """Theoretical work of a round, in any unit; the first estimate is the plain model's."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="fp32 on the CPU and bf16 on a GPU if left out")
    parser.add_argument("--attention", default="sdpa", help="attention implementation of transformers, e.g. flash_attention_2")
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"of {', '.join(models.CPU_MODELS)}, a preset, ...")
    parser.add_argument("--tokens", nargs="+", type=int, metavar="N", help="visual tokens of a sample")
    parser.add_argument("--batch", nargs="+", type=int, metavar="B", help="samples in one call; 1 on the CPU, 1 8 on a GPU")
    parser.add_argument("--plans", nargs="+", metavar="PLAN", help="instead of FastV at layer 2")
    parser.add_argument("--budget-minutes", type=float, help="bounds the run: fewer rounds, at least --rounds, or fewer cells")
    parser.add_argument("--rounds", type=int, default=5, help="least rounds of a cell")
    parser.add_argument("--most-rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--no-memory", action="store_true", help="do not follow the peak of live memory while warming up")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny models: shows that the script works; its numbers mean nothing"
    )
    parser.add_argument("--out", type=Path, help="raw file; by default one with date and counter in benchmarks/results")


def _fill_in(options: argparse.Namespace, benchmark: Benchmark, parser: argparse.ArgumentParser) -> None:
    gpu = options.device == "cuda"
    if gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    options.dtype = options.dtype or ("bf16" if gpu else "fp32")
    usual = models.SMOKE_MODELS if options.smoke else models.GPU_MODELS if gpu else models.CPU_MODELS
    options.models = options.models or list(usual)
    options.tokens = options.tokens or ([16, 32] if options.smoke else list(benchmark.tokens[options.device]))
    options.batch = options.batch or ([1, 8] if gpu else [1])
    unknown = [name for name in options.models if name not in models.names()]
    if unknown:
        parser.error(f"--models {unknown[0]}: known are {', '.join(models.names())}")
    if min(*options.tokens, *options.batch, options.rounds) < 1 or options.most_rounds < options.rounds:
        parser.error("--tokens, --batch and --rounds are at least 1, and --most-rounds at least --rounds")
    plans = options.plans or [f"fastv(layer=2, keep={keep})" for keep in benchmark.keeps]
    try:
        options.plans = [str(parse(plan)) for plan in plans]
    except FoveateError as error:
        parser.error(f"--plans: {error}")
    if options.threads or options.smoke:
        torch.set_num_threads(options.threads or 1)


def run(
    benchmark: Benchmark, options: argparse.Namespace, parser: argparse.ArgumentParser, others: Sequence[Benchmark] = ()
) -> Path:
    """Measure every cell and write the raw file; returns its path. `others`: the same benchmark with other lengths."""
    _fill_in(options, benchmark, parser)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    try:
        found = [_cells(one, options) for one in (benchmark, *others)]
        # Small ones first, so that a budget cuts the largest.
        cells = sorted((cell for own, _ in found for cell in own), key=lambda cell: cell.work)
        skipped = [skip for _, own in found for skip in own]
    except FoveateError as error:
        parser.error(str(error))
    if not cells:
        parser.error("nothing to measure: " + "; ".join(entry["reason"] for entry in skipped))
    folder = Path(tempfile.gettempdir()) if options.smoke else FOLDER
    try:
        file = ResultFile(options.out or free_name(benchmark.name, options.device, folder))
    except FileExistsError as error:
        parser.error(f"{error.filename} exists: results are never overwritten, choose another name")
    shown = {key: value for key, value in vars(options).items() if key not in ("out", "call")}
    result = header(benchmark.name, benchmark.what, device) | {
        "dtype": options.dtype, "attention": options.attention, "smoke": options.smoke, "options": shown,
        "text_tokens": models.TEXT_TOKENS, "new_tokens": benchmark.new_tokens, "cells": [], "skipped": skipped,
    }  # fmt: skip
    seconds = None if options.budget_minutes is None else 60 * options.budget_minutes
    budget = Budget(seconds, [cell.work for cell in cells], options.rounds, options.most_rounds)
    try:
        for number, cell in enumerate(cells):
            tag = f"[{number + 1}/{len(cells)}] {cell.model}, {cell.prompt.visual_tokens:,} visual tokens, batch {cell.batch}"
            tag += f", {cell.benchmark.new_tokens:,} new tokens" if others else ""
            try:
                _require_time(budget, number)
                _require_memory(cell, device, dtype)
                result["cells"].append(_measure(cell, options, budget, number, tag))
            except (Impossible, torch.cuda.OutOfMemoryError) as reason:
                text = str(reason) if isinstance(reason, Impossible) else "out of device memory"
                _say(f"{tag}: not measured, {text}")
                skipped.append(_skip(cell.model, cell.asked_tokens, cell.batch, text))
            _empty(device)
            file.save(result)
        result["seconds"] = round(time.monotonic() - budget.start, 1)
        result["complete"] = True
        file.save(result)
    finally:
        file.drop_if_empty()
    _say(f"wrote {file.path}")
    return file.path


def _skip(model: str, tokens: int, batch: int, reason: str) -> dict[str, Any]:
    return {"model": model, "asked_tokens": tokens, "batch": batch, "reason": reason}


def _cells(benchmark: Benchmark, options: argparse.Namespace) -> tuple[list[Cell], list[dict[str, Any]]]:
    """All cells; and those that cannot be, with the reason.

    Raises:
        FoveateError: for a plan that does not fit a model.
    """
    cells, skipped = [], []
    for tokens, batch, name in ((t, b, m) for t in options.tokens for b in options.batch for m in options.models):
        try:
            prompt = models.prompt_for(name, tokens, benchmark.new_tokens)
        except Impossible as reason:
            skipped.append(_skip(name, tokens, batch, str(reason)))
            continue
        for plan in options.plans:
            check_plan(parse(plan), family_for(prompt.config), prompt.config)
        costs = {plan: theory_of(prompt, plan, benchmark, batch, options.dtype) for plan in (PLAIN, *options.plans)}
        cells.append(Cell(name, tokens, batch, prompt, costs, benchmark.work(list(costs.values())), benchmark))
    return cells, skipped


def theory_of(prompt: Prompt, plan: str, benchmark: Benchmark, batch: int, dtype: str) -> CostEstimate | None:
    """Theory of a plan; None where a stage is not counted yet."""
    workload = dict(text_tokens=models.TEXT_TOKENS, max_new_tokens=benchmark.new_tokens, batch=batch, dtype=dtype)
    try:
        return estimate(prompt.config, plan, list(prompt.pictures), **workload)  # type: ignore[arg-type]
    except FoveateError:
        if plan == PLAIN:
            raise
        return None


def _require_time(budget: Budget, number: int) -> None:
    refusal = budget.refusal(number)
    if refusal is not None:
        raise Impossible(refusal)


def _require_memory(cell: Cell, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda":
        return
    cost = cell.estimates[PLAIN]
    needed = _HEADROOM * (models.weight_bytes(cell.prompt.config, dtype) + (0 if cost is None else cost.kv_bytes.plain))
    there = torch.cuda.get_device_properties(device).total_memory
    if needed > there:
        raise Impossible(f"weights and KV cache take {needed / 2**30:.0f} GiB, the device has {there / 2**30:.0f} GiB")


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(cell: Cell, options: argparse.Namespace, budget: Budget, number: int, tag: str) -> dict[str, Any]:
    benchmark, device, dtype = cell.benchmark, torch.device(options.device), DTYPES[options.dtype]
    _say(f"{tag}: building")
    model = models.build(cell.prompt.config, device, dtype, options.attention)
    inputs = models.inputs_for(cell.prompt, cell.batch, device, dtype)
    rows = {plan: _Row(plan) for plan in cell.estimates}
    if device.type == "cuda":
        benchmark.sample(model, inputs, PLAIN, device)  # workspaces of the kernels are no plan's memory
    start = time.monotonic()
    for plan, row in rows.items():
        cost = cell.estimates[plan]
        row.theory = {} if cost is None else benchmark.theory(model, cell.prompt, plan, cell.batch, cost)
        row.warm_up(benchmark, model, inputs, device, memory=not options.no_memory)
    warm = time.monotonic() - start
    budget.note(warm, cell.work)
    rounds = budget.rounds(number, warm)
    _say(f"{tag}: warm after {warm:.1f} s, {rounds} rounds")
    for turn, order in turns(list(rows), rounds):
        start = time.monotonic()
        for plan in order:
            gc.collect()
            rows[plan].add(benchmark.sample(model, inputs, plan, device))
        spent = time.monotonic() - start
        budget.note(spent, cell.work)
        if spent > 2:
            _say(f"{tag}: round {turn + 1} of {rounds}, {spent:.1f} s")
    out = {
        "model": cell.model, "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "asked_tokens": cell.asked_tokens, "visual_tokens": cell.prompt.visual_tokens, "pictures": len(cell.prompt.pictures),
        "batch": cell.batch, "new_tokens": benchmark.new_tokens, "rounds": rounds, "rounds_cut": options.most_rounds - rounds,
        "warm_up_seconds": round(warm, 2),
        "rows": [row.to_json(rows[PLAIN]) for row in rows.values()],
    }  # fmt: skip
    for row in out["rows"][1:]:
        _say(f"{tag}: {row['plan']}: " + ", ".join(f"{n} {v['ratio']:.3f}" for n, v in row["summary"].items() if "ratio" in v))
    return out


class _Row:
    """All samples of one plan."""

    def __init__(self, plan: str) -> None:
        self.plan = plan
        self.theory: dict[str, float] = {}
        self.samples: list[Sample] = []
        self.peak: int | None = None
        self.facts: dict[str, Any] = {}

    def warm_up(self, benchmark: Benchmark, model: Any, inputs: dict[str, Any], device: torch.device, memory: bool) -> None:
        """One turn that is not timed."""
        if not memory:
            self.facts = benchmark.sample(model, inputs, self.plan, device).facts
            return
        with peak_memory(device) as found:
            self.facts = benchmark.sample(model, inputs, self.plan, device).facts
        self.peak = found[0]

    def add(self, sample: Sample) -> None:
        """One turn."""
        self.samples.append(sample)

    def raw(self) -> dict[str, dict[str, list[float] | None]]:
        """Milliseconds of every round by name of the time, on the wall clock and of the process."""
        times = {}
        for name in self.samples[0].times:
            spent = [sample.times[name] for sample in self.samples]
            cpu = [round(s.cpu, 4) for s in spent if s.cpu is not None]
            times[name] = {"wall": [round(s.wall, 4) for s in spent], "cpu": cpu or None}
        return times

    def to_json(self, plain: _Row) -> dict[str, Any]:
        """Raw times, theory and a summary of both."""
        raw = self.raw()
        return {
            "plan": self.plan, "theory": self.theory, **self.facts, "peak_bytes": self.peak,
            "summary": {name: summary(plain.raw()[name], times) for name, times in raw.items()}, "raw_ms": raw,
        }  # fmt: skip


def summary(plain: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Median and quartiles of the wall time, and its ratio to the plain model's where both took time."""
    low, middle, high = quartiles(plan["wall"])
    out: dict[str, Any] = {"median_ms": middle, "quartiles_ms": [low, high]}
    if min(*plain["wall"], *plan["wall"]) > 0:
        ratio = paired_ratio(plain["wall"], plan["wall"])
        out |= {"ratio": ratio.value, "ratio_95": [ratio.low, ratio.high]}
    if plain["cpu"] and plan["cpu"] and min(*plain["cpu"], *plan["cpu"]) > 0:
        out["cpu_ratio"] = paired_ratio(plain["cpu"], plan["cpu"]).value
    return out


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
