"""Time per output token after a pruned prompt, and the KV cache that is stored.

    python -m benchmarks.decode run --budget-minutes 3 --tokens 1024
    python -m benchmarks.decode run --device cuda --new-tokens 1024 --batch 1 8
    python -m benchmarks.decode run --device cuda --new-tokens 2048 4096 --batch 1 8 \\
        --plans "random_gate(layer=2, keep=0.5, recent=0)" "fastv(layer=2, keep=0.2) | random_gate(layer=2, keep=0.5, recent=0)"
    python -m benchmarks.table benchmarks/results/*-decode-*.json

Random-weight models generate a fixed number of tokens; whole answers of the plain model and of the plans take turns within one
run. `tpot` of an answer is the mean over all tokens but the first, `first_half` and `second_half` are those of its halves,
which differ where a plan acts on what was generated. `peak_bytes` is the peak of live memory of a whole answer beyond the
weights, followed while warming up. Several lengths, batches and models are cells of one run; in each of them the plain model
(SDPA, KV cache) takes turns with all plans. Theory, `tpot`: a step reads all weights of the decoder once and every stored key
and value, so its time goes with those bytes; `tpot_flops`: its FLOPs. `--plans` takes any plan, with a gate too; theory is
left out where a stage cannot be counted yet. After a gate theory counts what is stored; a step also reads rejected slots that
wait to be taken away, up to 64 of them. KV bytes are read off the cache when the answer is complete: `kv_bytes` all that is
held, `kv_bytes_lasting` without those rejected slots. `answer_stored`: tokens that a gate stored and judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks import _run
from benchmarks._models import Prompt
from benchmarks._run import Benchmark, Sample
from benchmarks._timing import Clock, Spent
from foveate.api import attach
from foveate.api.measuring import cache_in, lasting_bytes, stored_bytes
from foveate.cost.estimate import CostEstimate
from foveate.families import family_for

# A CPU does this many times fewer FLOPs per second in a decode step, which waits for memory, than in a prefill.
_STEP_WEIGHT = 30


class Steps(StoppingCriteria):
    """Marks the moment at which each token is known; never stops anything."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.marks: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.marks.append(self.clock.mark())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Decode(Benchmark):
    """Generate an answer of a fixed length."""

    name = "decode"
    what = (
        "milliseconds per generated token after the first, with a KV cache, random weights; whole answers of plans and of the "
        "plain model take turns; ratios are medians over rounds of plan / plain, with a 95 % bootstrap over rounds"
    )
    keeps = ("0.5", "0.25", "0.1")
    tokens = {"cpu": (1024, 2880), "cuda": (576, 2880, 8192)}

    def sample(self, model: Any, inputs: dict[str, Any], plan: str, device: torch.device) -> Sample:
        clock = Clock(device)
        steps = Steps(clock)
        attachment = None if plan == _run.PLAIN else attach(model, plan)
        with attachment or nullcontext(), torch.inference_mode():
            clock.wait()
            start = clock.mark()
            out = model.generate(
                **inputs,
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                stopping_criteria=StoppingCriteriaList([steps]),
            )
        facts: dict[str, Any] = {
            "kv_bytes": stored_bytes(cache_in(out)),
            "kv_bytes_lasting": lasting_bytes(cache_in(out)),
        }
        if attachment is not None and attachment.plan.gate is not None:
            answers = attachment.trace.answer_kept
            facts["answer_stored"] = [sum(int(row.sum()) for row in answers), sum(len(row) for row in answers)]
        marks = steps.marks
        middle = len(marks) // 2
        times = {
            "ttft": clock.between(start, marks[0]),
            "tpot": _per_step(clock, marks),
            "first_half": _per_step(clock, marks[: middle + 1]),
            "second_half": _per_step(clock, marks[middle:]),
        }
        return Sample(times, facts)

    def theory(self, model: Any, prompt: Prompt, plan: str, batch: int, cost: CostEstimate) -> dict[str, float]:
        decoder = model.get_submodule(family_for(model.config).decoder)
        embedded = model.get_input_embeddings().weight.nbytes  # one row of it is read
        weights = sum(parameter.nbytes for parameter in decoder.parameters()) - embedded + model.lm_head.weight.nbytes
        # Bytes of the cache in the middle of the answer; after a gate it grows by what is stored.
        start = _run.theory_of(prompt, plan, Decode(1), batch, str(model.dtype))
        assert start is not None
        plain, planned = (
            weights + (before + after) / 2
            for before, after in ((start.kv_bytes.plain, cost.kv_bytes.plain), (start.kv_bytes.plan, cost.kv_bytes.plan))
        )
        ratios = {"tpot": planned / plain}
        if cost.decode_flops is not None:
            ratios["tpot_flops"] = cost.decode_flops.ratio.plan
        return ratios

    def work(self, estimates: Sequence[CostEstimate | None]) -> float:
        plain = estimates[0]
        assert plain is not None
        total = 0.0
        for cost in estimates:
            known = cost or plain
            which = "plan" if cost else "plain"
            steps = 0.0 if known.decode_flops is None else getattr(known.decode_flops, which)
            total += getattr(known.prefill_flops, which) + _STEP_WEIGHT * steps
        return total


def _per_step(clock: Clock, marks: list[Any]) -> Spent:
    """Mean time between marks."""
    whole, steps = clock.between(marks[0], marks[-1]), len(marks) - 1
    return Spent(whole.wall / steps, None if whole.cpu is None else whole.cpu / steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measuring = parser.add_subparsers(required=True).add_parser("run", help="measure and write a raw file")
    _run.add_options(measuring)
    said = "length of each answer, or several; 64 if left out, papers take 1024 to 4096"
    measuring.add_argument("--new-tokens", nargs="+", type=int, default=[64], metavar="N", help=said)
    options = parser.parse_args(arguments)
    if min(options.new_tokens) < 4:
        measuring.error("--new-tokens: at least 4, so that there are steps to average")
    first, *others = [Decode(length) for length in dict.fromkeys(options.new_tokens)]
    _run.run(first, options, measuring, others)


if __name__ == "__main__":
    main(sys.argv[1:])
