"""Time to first token under FastV, in its parts, beside what theory says.

    python -m benchmarks.prefill run --budget-minutes 9
    python -m benchmarks.prefill run --device cuda --attention flash_attention_2
    python -m benchmarks.prefill profile --model llava-100m --tokens 1024
    python -m benchmarks.table benchmarks/results/*-prefill-*.json --out docs/speed.md

Random-weight models generate one token with a KV cache. The plain model and the plans take turns within one run: times of
different runs are never compared. Measured: the whole call (`ttft`), the vision encoder with its projector (`encoder`), the
language model with its head (`llm`) and within it choosing tokens (`choosing`: attention rows, ranking, gather).
Theory is foveate.estimate's: `llm` with the LM head and without choosing, `ttft` with encoder and choosing. It counts the whole
square of attention; `llm_causal` counts the half that a causal kernel computes, and says how much of a gap that explains.
Realised: (1 - measured ratio) / (1 - theory ratio).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks import _models as models
from benchmarks import _run
from benchmarks._models import Impossible, Prompt
from benchmarks._run import Benchmark, Sample
from benchmarks._timing import Clock, Parts
from foveate.api import attach
from foveate.api.measuring import CHOOSING, cache_in, check_plan, stored_bytes
from foveate.cost.estimate import CostEstimate
from foveate.cost.flops import attention_flops
from foveate.errors import FoveateError
from foveate.families import family_for
from foveate.spec import parse


class Prefill(Benchmark):
    """Generate one token."""

    name = "prefill"
    what = (
        "milliseconds of one generated token with a KV cache, random weights; plans take turns with the plain model; llm "
        "contains choosing; ratios are medians over rounds of plan / plain, with a 95 % bootstrap over rounds"
    )
    keeps = ("0.75", "0.5", "0.25", "0.1")
    tokens = {"cpu": (576, 1024, 2880, 4096), "cuda": (576, 2880, 8192)}

    def sample(self, model: Any, inputs: dict[str, Any], plan: str, device: torch.device) -> Sample:
        clock = Clock(device)
        attached = nullcontext() if plan == _run.PLAIN else attach(model, plan)
        with attached, torch.inference_mode(), Parts(clock, models.parts_of(model), {"choosing": CHOOSING}) as parts:
            clock.wait()
            start = clock.mark()
            out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
            times = {"ttft": clock.between(start, clock.mark()), **parts.spent()}
            facts = {"kv_bytes": stored_bytes(cache_in(out))}
        return Sample(times, facts)

    def theory(self, model: Any, prompt: Prompt, plan: str, batch: int, cost: CostEstimate) -> dict[str, float]:
        return {
            "ttft": (cost.prefill_flops.plan + cost.selection_flops) / cost.prefill_flops.plain,
            "llm": cost.llm_prefill_flops.ratio.plan,
            "llm_causal": causal_ratio(prompt, cost),
        }

    def work(self, estimates: Sequence[CostEstimate | None]) -> float:
        plain = estimates[0]
        assert plain is not None
        return sum(plain.prefill_flops.plain if cost is None else cost.prefill_flops.plan for cost in estimates)


def causal_ratio(prompt: Prompt, cost: CostEstimate) -> float:
    """The ratio of LLM prefill FLOPs if attention computes only the half of its square that a causal mask leaves."""
    decoder = family_for(prompt.config).model_shape(prompt.config).decoder
    saved = []
    for per_layer in cost.visual_tokens_per_layer:
        lengths = [int(visual) + cost.text_tokens for visual in per_layer]
        squares = sum(attention_flops(decoder.heads * decoder.layer(i).head_dim, n, n) for i, n in enumerate(lengths))
        saved.append(cost.batch * squares / 2)
    plain, plan = saved
    return (cost.llm_prefill_flops.plan - plan) / (cost.llm_prefill_flops.plain - plain)


def profile(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Print the self time of every operation, plain and under a plan, and by how much it misses theory."""
    device, dtype = torch.device(options.device), _run.DTYPES[options.dtype]
    if options.threads:
        torch.set_num_threads(options.threads)
    benchmark = Prefill(1)
    try:
        prompt = models.prompt_for(options.model, options.tokens)
        check_plan(parse(options.plan), family_for(prompt.config), prompt.config)
    except (Impossible, FoveateError) as error:
        parser.error(str(error))
    model = models.build(prompt.config, device, dtype, options.attention)
    inputs = models.inputs_for(prompt, options.batch, device, dtype)
    tables = []
    for plan in (_run.PLAIN, options.plan):
        for _ in range(options.warm_up):
            benchmark.sample(model, inputs, plan, device)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        with torch.profiler.profile(activities=activities) as seen:
            for _ in range(options.repeats):
                benchmark.sample(model, inputs, plan, device)
        tables.append({event.key: (_self_ms(event, device) / options.repeats, event.count) for event in seen.key_averages()})
    cost = _run.theory_of(prompt, options.plan, benchmark, options.batch, options.dtype)
    theory = None if cost is None else benchmark.theory(model, prompt, options.plan, options.batch, cost)["ttft"]
    print(profile_table(tables[0], tables[1], theory, options.lines))


def _self_ms(event: Any, device: torch.device) -> float:
    return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e3


def profile_table(
    plain: dict[str, tuple[float, int]], plan: dict[str, tuple[float, int]], theory: float | None, lines: int
) -> str:
    """Markdown: operations by how many milliseconds they take under the plan beyond theory's share of their plain time.

    Args:
        plain, plan: self milliseconds and calls of each operation.
        theory: the whole pass's ratio of plan to plain; None counts every operation's time in full.
        lines: how many operations to show.
    """
    share = 0.0 if theory is None else theory
    names = sorted({*plain, *plan}, key=lambda name: share * plain.get(name, (0.0, 0))[0] - plan.get(name, (0.0, 0))[0])
    rows = [
        "| operation | plain ms | plan ms | ratio | ms beyond theory | calls plain | calls plan |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ["all", *names[:lines]]:
        if name == "all":
            before, after = (sum(time for time, _ in table.values()) for table in (plain, plan))
            calls = [sum(count for _, count in table.values()) for table in (plain, plan)]
        else:
            (before, first), (after, second) = plain.get(name, (0.0, 0)), plan.get(name, (0.0, 0))
            calls = [first, second]
        ratio = f"{after / before:.3f}" if before else "new"
        rows.append(
            f"| {name} | {before:.2f} | {after:.2f} | {ratio} | {after - share * before:+.2f} | {calls[0]} | {calls[1]} |"
        )
    head = "theory: not counted" if theory is None else f"theory: {theory:.3f} of the plain time"
    return "\n".join([head, "", *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    measuring = modes.add_parser("run", help="measure and write a raw file")
    _run.add_options(measuring)
    measuring.set_defaults(call=lambda options: _run.run(Prefill(1), options, measuring))
    profiling = modes.add_parser("profile", help="where the time goes, operation by operation")
    profiling.add_argument("--model", choices=models.names(), default="llava-100m", metavar="NAME")
    profiling.add_argument("--tokens", type=int, default=1024)
    profiling.add_argument("--batch", type=int, default=1)
    profiling.add_argument("--plan", default="fastv(layer=2, keep=0.5)")
    profiling.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    profiling.add_argument("--dtype", choices=list(_run.DTYPES), default="fp32")
    profiling.add_argument("--attention", default="sdpa")
    profiling.add_argument("--warm-up", type=int, default=1)
    profiling.add_argument("--repeats", type=int, default=3)
    profiling.add_argument("--threads", type=int)
    profiling.add_argument("--lines", type=int, default=30)
    profiling.set_defaults(call=lambda options: profile(options, profiling))
    options = parser.parse_args(arguments)
    options.call(options)


if __name__ == "__main__":
    main(sys.argv[1:])
