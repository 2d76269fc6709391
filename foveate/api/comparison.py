"""compare(): the same prompt under several plans, side by side, with times measured in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from foveate.api.attachment import attach
from foveate.api.memory import peak_memory
from foveate.core.plan import Plan
from foveate.cost.estimate import CostEstimate
from foveate.engine.cache_kinds import lasting_bytes, stored_bytes
from foveate.engine.carrying import unwrap
from foveate.engine.compat import cache_in
from foveate.errors import InputError
from foveate.families import family_for
from foveate.spec import as_plan

# The first token warms up the prefill, the others the decode steps.
_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Candidate:
    """One row of a comparison.

    Attributes:
        name: as shown.
        plan: a spec or a plan, "none" for the plain model.
        inputs: other inputs for this row, e.g. of a downsampled image; None for the common ones.
    """

    name: str
    plan: str | Plan
    inputs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What one plan answered and what it took.

    Attributes:
        new_tokens: [B, T] long, generated ids.
        visual_tokens, kept_tokens: of the whole batch, before and after the plan.
        prefill_ratio: LLM prefill FLOPs under the plan as a share of the plain model's, in theory; None without media.
        kv_bytes: of the cache when the answer was complete, read off the cache, without slots that a gate rejected and that
            wait to be taken away; 0 without a cache, None if the backend quantizes it.
        kv_bytes_held: the same with those slots.
        ttft_ms: time to the first token: vision encoder, selection and prefill; median over the repeats.
        tpot_ms: mean time of the further tokens; None if there is only one.
        peak_bytes: peak memory while answering, the most of the repeats: on CUDA what was allocated, weights included; on a
            CPU by how much the process grew; None where the system does not tell.
        loyalty: share of generated tokens equal to the plain model's, position by position; 1.0 for the plain model.
    """

    name: str
    plan: str
    new_tokens: Tensor
    visual_tokens: int
    kept_tokens: int
    prefill_ratio: float | None
    kv_bytes: int | None
    kv_bytes_held: int | None
    ttft_ms: float
    tpot_ms: float | None
    loyalty: float
    estimate: CostEstimate | None
    peak_bytes: int | None = None


class _Clock(StoppingCriteria):
    """Notes when each token is known; never stops anything."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, [self._now(device)]

    @staticmethod
    def _now(device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.times.append(self._now(self.device))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class _Row:
    name: str
    plan: Plan
    inputs: Mapping[str, Any]


def _row(plan: str | Plan | Candidate, inputs: Mapping[str, Any]) -> _Row:
    if isinstance(plan, Candidate):
        return _Row(plan.name, as_plan(plan.plan), plan.inputs or inputs)
    return _Row(str(as_plan(plan)), as_plan(plan), inputs)


@dataclass(frozen=True)
class _Run:
    new_tokens: Tensor
    kv_bytes: int | None
    kv_bytes_held: int | None
    ttft_ms: float
    tpot_ms: float | None
    visual_tokens: int
    kept_tokens: int
    estimate: CostEstimate | None
    peak_bytes: int | None


def compare(
    model: Any,
    inputs: Mapping[str, Any],
    plans: str | Plan | Candidate | Sequence[str | Plan | Candidate],
    max_new_tokens: int = 32,
    repeats: int = 1,
    with_plain: bool = True,
    warm_up: bool = True,
    seed: int = 0,
    **options: Any,
) -> list[Answer]:
    """Generate from the same inputs under the plain model and under each plan.

    Times are fair only within one call: the plans take turns, `repeats` times, and medians are reported.

    Args:
        model: what `attach` takes; nothing may be attached to it.
        inputs: what the processor returned.
        plans: specs, plans, or candidates with inputs of their own.
        max_new_tokens, options: for generate; greedy unless options say otherwise.
        repeats: how often each row is timed.
        with_plain: put the plain model in the first row; loyalty is agreement with the first row.
        seed: where answers are drawn, each row and repeat draws from this seed on; torch's own state is left as it was.
        warm_up: generate a few tokens first, so that the first row does not pay for it.

    Raises:
        FoveateError: for a plan that does not fit the model, before anything is generated.
    """
    if not isinstance(repeats, int) or not isinstance(max_new_tokens, int) or min(repeats, max_new_tokens) < 1:
        raise InputError("repeats and max_new_tokens are whole numbers of at least 1")
    taken = sorted({"cache", "past_key_values", "return_dict_in_generate", "max_length"} & {*options, *inputs})
    if taken or "input_ids" not in inputs:
        raise InputError(f"compare runs whole prompts from input_ids, and sets {', '.join(taken) or 'nothing else'} itself")
    rows = [_Row("plain", Plan(), inputs)] if with_plain else []
    rows += [_row(plan, inputs) for plan in ([plans] if isinstance(plans, (str, Plan, Candidate)) else plans)]
    base = unwrap(model)
    for row in rows:
        with attach(base, row.plan):
            pass
    if not rows:
        raise InputError("nothing to run: give at least one plan")
    if warm_up:
        short = {name: value for name, value in options.items() if name != "min_new_tokens"}
        with seeded(base, seed):
            _generate(base, inputs, rows[0].plan, min(_WARM_UP_TOKENS, max_new_tokens), short)
    runs: list[list[_Run]] = [[] for _ in rows]
    for _ in range(repeats):
        for row, done in zip(rows, runs, strict=True):
            with seeded(base, seed):
                done.append(_generate(base, row.inputs, row.plan, max_new_tokens, options))
    plain = runs[0][0].new_tokens
    return [_answer(row, done, plain) for row, done in zip(rows, runs, strict=True)]


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw from a seed on; torch's own state is left as it was."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _generate(model: nn.Module, inputs: Mapping[str, Any], plan: Plan, tokens: int, options: Mapping[str, Any]) -> _Run:
    # The plain row carries no hook at all.
    attachment = attach(model, plan) if plan.stages else None
    device = next(model.parameters()).device
    with attachment or nullcontext(), torch.inference_mode(), peak_memory(device) as peak:
        clock = _Clock(device)
        criteria = StoppingCriteriaList([*options.get("stopping_criteria", ()), clock])
        output = model.generate(  # type: ignore[operator]
            **inputs,
            **{"do_sample": False, **options, "stopping_criteria": criteria},
            max_new_tokens=tokens,
            return_dict_in_generate=True,
        )
    start = inputs["input_ids"].shape[1]
    steps = [1e3 * (after - before) for before, after in zip(clock.times, clock.times[1:], strict=False)]
    visual = kept = _visual_tokens(model, inputs)
    estimate = None
    if attachment is not None and attachment.traces:
        report = attachment.report()
        kept = visual - sum(before - after for _, _, before, after in report.media)
        estimate = report.estimate
    cache = cache_in(output)
    return _Run(
        new_tokens=output.sequences[:, start:].cpu(),
        kv_bytes=0 if cache is None else lasting_bytes(cache),
        kv_bytes_held=0 if cache is None else stored_bytes(cache),
        ttft_ms=steps[0],
        tpot_ms=sum(steps[1:]) / len(steps[1:]) if len(steps) > 1 else None,
        visual_tokens=visual,
        kept_tokens=kept,
        estimate=estimate,
        peak_bytes=peak.bytes,
    )


def _visual_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    ids = torch.tensor(list(family_for(model.config).placeholder_ids(model.config).values()))
    return int(torch.isin(inputs["input_ids"].cpu(), ids).sum())


def _answer(row: _Row, runs: list[_Run], plain: Tensor) -> Answer:
    first = runs[0]
    tpots = [run.tpot_ms for run in runs if run.tpot_ms is not None]
    return Answer(
        name=row.name,
        plan=str(row.plan),
        new_tokens=first.new_tokens,
        visual_tokens=first.visual_tokens,
        kept_tokens=first.kept_tokens,
        prefill_ratio=None if first.estimate is None else first.estimate.llm_prefill_flops.ratio.plan,
        kv_bytes=first.kv_bytes,
        kv_bytes_held=first.kv_bytes_held,
        ttft_ms=median(run.ttft_ms for run in runs),
        tpot_ms=median(tpots) if tpots else None,
        loyalty=_agreement(first.new_tokens, plain),
        estimate=first.estimate,
        peak_bytes=None if None in (peaks := [run.peak_bytes for run in runs]) else max(peak or 0 for peak in peaks),
    )


def _agreement(tokens: Tensor, plain: Tensor) -> float:
    width = max(tokens.shape[1], plain.shape[1])
    pad = [nn.functional.pad(t, (0, width - t.shape[1]), value=-1) for t in (tokens, plain)]
    return float((pad[0] == pad[1]).float().mean())
