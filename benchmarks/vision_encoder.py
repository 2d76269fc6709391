"""Stages inside the vision encoder: time and live memory of real encoder shapes, theory beside measured.

    python -m benchmarks.vision_encoder run --models siglip-so400m --budget-minutes 5
    python -m benchmarks.vision_encoder page benchmarks/results/*-vision_encoder-*.json --out docs/vision_encoder.md

Random-weight encoders at the size of published ones, in front of a language model as small as can be, or whole models
(`onevision-0.5b`). Plans take turns with the plain model within one run. Measured: the encoder with its projector (`encoder`,
which contains the stages' own work), within it choosing and merging (`choosing`), the language model (`llm`), the whole call
(`ttft`), and the peak of live memory. Theory counts the encoder's and the stages' matrix products (foveate.estimate).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import _models as models
from benchmarks import _run
from benchmarks._models import Prompt
from benchmarks._run import Benchmark, Sample
from benchmarks._statistics import realised
from benchmarks._timing import Clock, Parts
from foveate.api import attach
from foveate.api.measuring import CHOOSING, ENCODER_CHOOSING
from foveate.cost.estimate import CostEstimate

# Usual plans of each model: about a half and a quarter of the tokens.
PLANS = {
    "siglip-so400m": ("illava(preset=onevision-image, only=vit)", "partition(site=vision, layer=6, keep=0.5)"),
    "qwen2.5-vl-encoder": ("partition(site=vision, layer=8, keep=0.5)", "illava_v2(site=vision, layer=8, keep=0.25)"),
    "onevision-0.5b": ("illava(preset=onevision-image)",),
    "smoke-llava": ("uniform(site=vision, layer=0, keep=0.5)",),
}
TOKENS = {"siglip-so400m": 729, "qwen2.5-vl-encoder": 256, "onevision-0.5b": 1460, "smoke-llava": 16}
# Below this share of the whole call a language model only stands there so that the encoder has something to feed.
_SHARE = 0.05


class VisionEncoder(Benchmark):
    """Generate one token; look at the encoder."""

    name = "vision_encoder"
    what = (
        "milliseconds of one generated token, random weights; encoder contains projector, choosing and merging; ratios are "
        "medians over rounds of plan / plain, with a 95 % bootstrap over rounds"
    )
    keeps = ("0.5",)
    tokens = {"cpu": (729,), "cuda": (729,)}

    def sample(self, model: Any, inputs: dict[str, Any], plan: str, device: torch.device) -> Sample:
        clock = Clock(device)
        attached = nullcontext() if plan == _run.PLAIN else attach(model, plan)
        functions = {"choosing": (*CHOOSING, *ENCODER_CHOOSING)}
        with attached, torch.inference_mode(), Parts(clock, models.parts_of(model), functions) as parts:
            clock.wait()
            start = clock.mark()
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
            return Sample({"ttft": clock.between(start, clock.mark()), **parts.spent()}, {})

    def theory(self, model: Any, prompt: Prompt, plan: str, batch: int, cost: CostEstimate) -> dict[str, float]:
        assert cost.encoder_flops is not None
        return {
            "encoder": (cost.encoder_flops.plan + cost.selection_flops) / cost.encoder_flops.plain,
            "llm": cost.llm_prefill_flops.ratio.plan,
            "ttft": (cost.prefill_flops.plan + cost.selection_flops) / cost.prefill_flops.plain,
        }

    def work(self, estimates: Sequence[CostEstimate | None]) -> float:
        plain = estimates[0]
        assert plain is not None
        return sum(plain.prefill_flops.plain if cost is None else cost.prefill_flops.plan for cost in estimates)


PAGE = """# The vision encoder, measured

Made by `python -m benchmarks.vision_encoder`; raw files in `benchmarks/results/` hold every single time. Random weights. A
ratio is the time under a plan over the plain model's of the same round, median over rounds, with a paired 95 % bootstrap.
The encoder's time contains its projector, choosing and merging, the LLM's its own choosing; where the LLM is as small as can
be, its time is left out. *Realised* is (1 - measured) / (1 - theory). Memory is the peak
of what is alive beyond the weights, while nothing is timed.

{table}

GPU cells: {gpu}.
"""


def page(files: Sequence[Path], out: Path) -> None:
    """Write the page."""
    heading = [
        "run", "model", "visual tokens", "plan", "encoder ms", "encoder ratio [95 %]", "theory", "realised", "choosing",
        "LLM ratio [95 %]", "theory", "realised", "TTFT ratio [95 %]", "theory", "realised", "peak memory",
    ]  # fmt: skip
    lines, devices = [heading, ["---"] * len(heading)], set()
    for file in files:
        run = json.loads(file.read_text(encoding="utf-8"))
        devices.add(run["device"])
        for cell in run["cells"]:
            plain = cell["rows"][0]
            for row in cell["rows"]:
                lines.append(_line(file.stem, cell, row, plain))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    gpu = "in the table" if "cuda" in devices else "not measured"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(PAGE.format(table=table, gpu=gpu), encoding="utf-8")


def _line(name: str, cell: dict[str, Any], row: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    summary = row["summary"]
    cells = [name, cell["model"], f"{cell['visual_tokens']:,}", f"`{row['plan']}`".replace("|", "\\|")]
    cells.append(f"{summary['encoder']['median_ms']:,.0f}")
    tiny = plain["summary"]["llm"]["median_ms"] < _SHARE * plain["summary"]["ttft"]["median_ms"]
    for part in ("encoder", "llm", "ttft"):
        ratio, theory = summary[part].get("ratio"), row["theory"].get(part)
        if row is plain or ratio is None or (part == "llm" and tiny):
            cells += ["", "", ""]
        else:
            low, high = summary[part]["ratio_95"]
            share = realised(ratio, theory)
            cells.append(f"{100 * ratio:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
            cells += ["" if theory is None else f"{100 * theory:.1f} %", "" if share is None else f"{share:.2f}"]
        if part == "encoder":
            cells.append(f"{100 * summary['choosing']['median_ms'] / summary['encoder']['median_ms']:.1f} %")
    peak = row["peak_bytes"]
    cells.append("not measured" if peak is None else f"{peak / 2**20:,.0f} MiB")
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    measuring = modes.add_parser("run", help="measure one model and write a raw file")
    _run.add_options(measuring)
    measuring.set_defaults(call=lambda options: _measure(options, measuring))
    writing = modes.add_parser("page")
    writing.add_argument("files", type=Path, nargs="+")
    writing.add_argument("--out", type=Path, default=Path("docs/vision_encoder.md"))
    writing.set_defaults(call=lambda options: page(options.files, options.out))
    options = parser.parse_args(arguments)
    options.call(options)


def _measure(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    options.models = options.models or (["smoke-llava"] if options.smoke else ["siglip-so400m"])
    if len(options.models) != 1:
        parser.error("--models: one model a run, its plans are its own")
    name = options.models[0]
    options.plans = options.plans or list(PLANS.get(name, ("partition(site=vision, layer=6, keep=0.5)",)))
    options.tokens = options.tokens or [TOKENS.get(name, 729)]
    _run.run(VisionEncoder(1), options, parser)


if __name__ == "__main__":
    main(sys.argv[1:])
