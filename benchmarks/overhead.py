"""What an attached plan costs besides what it saves: at a decode step, and for choosing tokens while the prompt is read.

    python benchmarks/overhead.py --out benchmarks/results/NAME.json

A random-weight LLaVA of about 100M parameters reads one picture of 1,024 visual tokens. Two models with the same weights run
in turns, plain and attached, in this process; numbers are medians of process time on one thread, so that other work on the
machine disturbs them little. The attached plans keep everything, or all tokens but one: the price is measured, not the gain.

Decode: fastv(layer=2, keep=1023) puts a shorter slot layer behind every decoder layer from 2 on.
Prefill: fastv(layer=2, keep=100%), forced through attention rows, ranking, gather, projection and slot cache.
Choosing alone (attention rows, ranking, gather) is also timed where it happens, with fastv(layer=2, keep=0.5): a difference of
two whole prefills is lost in their noise.
Goals: a decode step <= 3 % longer, choosing <= 2 % of the plain time to first token.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from foveate.demo.evaluation import versions
from foveate.engine import observe
from foveate.engine import prefill as stages
from foveate.engine.attach import Attachment
from foveate.spec import Plan, stage_text

IMAGE, TEXT = 7999, 64


def build() -> LlavaForConditionalGeneration:
    """A LLaVA with 12 decoder layers of width 768 and an encoder so small that the decoder is what is measured."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=8000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=448, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, image_seq_length=1024)
    return LlavaForConditionalGeneration(config).eval()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Process time in milliseconds, and what the call returned."""
    start = time.process_time()
    out = call()
    return (time.process_time() - start) * 1e3, out


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Run each call `repeats` times, in turns and in changing order."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats):
        names = list(calls) if number % 2 else list(calls)[::-1]
        for name in names:
            times[name].append(timed(calls[name])[0])
    return times


class Stopwatch:
    """Adds up the process time of calls of some module functions, in milliseconds."""

    def __init__(self, *places: tuple[Any, str]) -> None:
        self.places, self.total = places, 0.0

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            spent, out = timed(lambda: function(*args, **kwargs))
            self.total += spent
            return out

        return run

    def __enter__(self) -> Stopwatch:
        self.before = [getattr(module, name) for module, name in self.places]
        for (module, name), function in zip(self.places, self.before, strict=True):
            setattr(module, name, self._watched(function))
        return self

    def __exit__(self, *error: object) -> None:
        for (module, name), function in zip(self.places, self.before, strict=True):
            setattr(module, name, function)


def choosing(call: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds spent on choosing in each of `repeats` prefills."""
    spent = []
    for _ in range(repeats):
        with Stopwatch((observe, "attention_rows"), (stages, "run_stage")) as watch:
            call()
        spent.append(watch.total)
    return spent


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prefills", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists: results are never overwritten, choose another name")
    torch.set_num_threads(1)
    plain, carrying = build(), build()
    carrying.load_state_dict(plain.state_dict(), assign=True)
    ids = torch.cat([torch.arange(3, 3 + TEXT // 2), torch.full((1024,), IMAGE), torch.arange(50, 50 + TEXT // 2)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 448, 448)}

    def read(model: Any) -> Any:
        return model(**inputs, use_cache=True, logits_to_keep=1)

    with torch.inference_mode():
        with Attachment(carrying, Plan.parse("fastv(layer=2, keep=100%)"), stage_text, shortcut=False):
            read(plain), read(carrying)
            prefill = in_turns({"plain": lambda: read(plain), "attached": lambda: read(carrying)}, options.prefills)
        with Attachment(carrying, Plan.parse("fastv(layer=2, keep=0.5)"), stage_text):
            read(carrying)
            chosen = choosing(lambda: read(carrying), options.prefills)
        with Attachment(carrying, Plan.parse("fastv(layer=2, keep=1023)"), stage_text):
            caches = {"plain": read(plain).past_key_values, "attached": read(carrying).past_key_values}
            models = {"plain": plain, "attached": carrying}
            token = torch.tensor([[11]])

            def step(name: str) -> Any:
                return models[name](input_ids=token, past_key_values=caches[name], use_cache=True)

            calls = {name: (lambda name=name: step(name)) for name in models}
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
        "visual_tokens": 1024,
        "ratio": ratio,
        "median_ms": {
            "decode_step": {name: median(values) for name, values in decode.items()},
            "prefill": {name: median(values) for name, values in prefill.items()},
        },
        "raw_ms": {"decode_step": decode, "prefill": prefill, "choosing": chosen},
        "backend": "sdpa", "dtype": "float32", "threads": 1, "versions": versions(),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, value in ratio.items():
        print(f"{name}: {100 * value:.2f} %")


if __name__ == "__main__":
    main()
