"""What an attached plan costs besides what it saves: at a decode step, and for choosing tokens while the prompt is read.

    python -m benchmarks.overhead --out benchmarks/results/NAME.json

A random-weight LLaVA of about 100M parameters reads one picture of 1,024 visual tokens. Two models with the same weights run
in turns, plain and attached, in this process; numbers are medians of process time on one thread, so that other work on the
machine disturbs them little. The attached plans keep everything, or all tokens but one: the price is measured, not the gain.

Decode: fastv(layer=2, keep=1023) puts a shorter slot layer at every decoder layer from 2 on.
Prefill: fastv(layer=2, keep=100%), forced through attention rows, ranking, gather, projection and slot cache.
Choosing alone (attention rows, ranking, gather) is also timed where it happens, with fastv(layer=2, keep=0.5): a difference of
two whole prefills is lost in their noise.
Goals: a decode step <= 3 % longer, choosing <= 2 % of the plain time to first token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import _models as models
from benchmarks._results import write_results
from benchmarks._timing import Clock, Parts, timed, turns
from foveate.api import Attachment
from foveate.api.measuring import CACHE, CHOOSING, cache_in
from foveate.demo.evaluation import versions
from foveate.spec import parse

THREADS, VISUAL_TOKENS = 1, 1024


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Process time in milliseconds of each call, run `repeats` times in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _, names in turns(list(calls), repeats):
        for name in names:
            spent = timed(calls[name])[0].cpu
            assert spent is not None
            times[name].append(spent)
    return times


def choosing(call: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds of process time spent on choosing in each of `repeats` prefills."""
    found = []
    for _ in range(repeats):
        with Parts(Clock(torch.device("cpu")), {}, {"choosing": CHOOSING}) as parts:
            call()
        found.append(parts.spent()["choosing"].cpu or 0.0)
    return found


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prefills", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists: results are never overwritten, choose another name")
    torch.set_num_threads(THREADS)
    cpu, dtype = torch.device("cpu"), torch.float32
    prompt = models.prompt_for("llava-100m-bare", VISUAL_TOKENS)
    plain, carrying = (models.build(prompt.config, cpu, dtype, "sdpa") for _ in range(2))
    carrying.load_state_dict(plain.state_dict(), assign=True)
    inputs = models.inputs_for(prompt, 1, cpu, dtype)

    def read(model: Any) -> Any:
        return model(**inputs, use_cache=True, logits_to_keep=1)

    with torch.inference_mode():
        with Attachment(carrying, parse("fastv(layer=2, keep=100%)"), shortcut=False):
            read(plain), read(carrying)
            prefill = in_turns({"plain": lambda: read(plain), "attached": lambda: read(carrying)}, options.prefills)
        with Attachment(carrying, parse("fastv(layer=2, keep=0.5)")):
            read(carrying)
            chosen = choosing(lambda: read(carrying), options.prefills)
        with Attachment(carrying, parse("fastv(layer=2, keep=1023)")):
            caches = {"plain": cache_in(read(plain)), "attached": cache_in(read(carrying))}
            both = {"plain": plain, "attached": carrying}
            token = torch.tensor([[11]])

            def step(name: str) -> Any:
                return both[name](input_ids=token, **{CACHE: caches[name]}, use_cache=True)

            calls = {name: (lambda name=name: step(name)) for name in both}
            in_turns(calls, 10)
            decode = in_turns(calls, options.steps)
    ratio = {
        "decode_step": median(decode["attached"]) / median(decode["plain"]),
        "time_to_first_token": median(prefill["attached"]) / median(prefill["plain"]),
        "choosing_of_time_to_first_token": median(chosen) / median(prefill["plain"]),
    }
    result = {
        "what": "time with a plan that keeps (almost) everything over time without one; medians of process time, one thread",
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "visual_tokens": VISUAL_TOKENS,
        "ratio": ratio,
        "median_ms": {
            "decode_step": {name: median(values) for name, values in decode.items()},
            "prefill": {name: median(values) for name, values in prefill.items()},
        },
        "raw_ms": {"decode_step": decode, "prefill": prefill, "choosing": chosen},
        "backend": "sdpa", "dtype": "float32", "threads": THREADS, "versions": versions(),
    }  # fmt: skip
    write_results(options.out, result)
    for name, value in ratio.items():
        print(f"{name}: {100 * value:.2f} %")


if __name__ == "__main__":
    main()
