"""Merging compared: what the variants of iLLaVA, ToMe, dropping and random lose at equal numbers of tokens.

    python -m benchmarks.merging run --questions 100 --out benchmarks/results/NAME.json
    python -m benchmarks.merging page benchmarks/results/NAME.json --out docs/merging.md

Two measurements. *Features*: how far the tokens that leave the vision encoder are from those of the plain encoder, on the demo
model's pictures and on a SigLIP with random weights. *Answers*: accuracy of the demo model, merging in the encoder, in the
language model, or in both. `run` can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import foveate
from benchmarks._models import build
from benchmarks._results import write_results
from benchmarks._study import answers, beside, graded, resumed, table
from benchmarks.quality import SEED, Prompts, Row
from foveate.demo.evaluation import held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.evaluate.intervals import interval
from foveate.families import family_for

METHODS = {
    "v1": "illava_v1({place}, keep={keep})",
    "v2": "illava_v2({place}, keep={keep})",
    "partition": "partition({place}, keep={keep})",
    "ToMe": "tome({place}, keep={keep})",
    "drop": "illava_v2({place}, keep={keep}, mode=1)",
    "random": "random({place}, keep={keep})",
}
KEEPS = (0.5, 0.25)
ENCODER, DECODER = "site=vision, layer=2", "layer=2"
# ToMe compares keys, which only the encoder has.
DECODER_METHODS = tuple(name for name in METHODS if name != "ToMe")
PICTURES = 64


def rows() -> Iterator[Row]:
    """Every plan of the accuracy study. `both` keeps the square root of its share in each of the two places."""
    yield Row("plain", None, 1.0, "none")
    for keep in KEEPS:
        for name, text in METHODS.items():
            yield Row(f"encoder {name}", None, keep, text.format(place=ENCODER, keep=keep))
        for name in DECODER_METHODS:
            yield Row(f"decoder {name}", None, keep, METHODS[name].format(place=DECODER, keep=keep))
        half = round(keep**0.5, 4)
        for name in DECODER_METHODS:
            plans = [METHODS[name].format(place=place, keep=half) for place in (ENCODER, DECODER)]
            yield Row(f"both {name}", None, keep, " | ".join(plans))


def siglip() -> Any:
    """A LLaVA around a SigLIP of 12 layers and 729 patches with random weights; its language model is as small as can be."""
    from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

    text = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, image_size=378, patch_size=14,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=90, image_seq_length=729, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(SEED)
    return build(config, torch.device("cpu"), torch.float32, "sdpa")


@torch.inference_mode()
def features(model: Any, pixels: Tensor, plan: str) -> tuple[Tensor, list[Tensor]]:
    """What the projector is given for each picture [P, N, D], and which of the N tokens are left of it."""
    path = family_for(model.config).encoder(model.config)
    given: list[Tensor] = []
    projector = model.get_submodule(path.projector)
    handle = projector.register_forward_pre_hook(lambda module, args: given.append(args[0].clone()))
    placeholder = model.config.image_token_id
    try:
        ids = torch.tensor([3] + [placeholder] * model.config.image_seq_length + [4]).expand(len(pixels), -1)
        if plan == "none":
            model(input_ids=ids, pixel_values=pixels)
            return given[0], [torch.arange(given[0].shape[1])] * len(pixels)
        with foveate.attach(model, plan) as attachment:
            model(input_ids=ids, pixel_values=pixels)
            return given[0], [entry.kept_index for entry in attachment.trace.media]
    finally:
        handle.remove()


def errors(plain: Tensor, changed: Tensor, kept: list[Tensor]) -> dict[str, list[float]]:
    """Two relative squared errors of each picture.

    `own`: of the survivors against the plain features at their places. `coverage`: of every plain feature against the nearest
    survivor, which asks whether something that stands for it is left; the same rule for every method.
    """
    found: dict[str, list[float]] = {"own": [], "coverage": []}
    for before, after, index in zip(plain, changed, kept, strict=True):
        scale = (before - before.mean(0)).square().sum(-1).mean()
        survivors = after[index]
        found["own"].append(float((survivors - before[index]).square().sum(-1).mean() / scale))
        found["coverage"].append(float(torch.cdist(before, survivors).square().amin(1).mean() / scale))
    return found


def feature_study(model: Any, pixels: Tensor, layer: int, encoder: str) -> list[dict[str, Any]]:
    """Errors of every method at every share."""
    out = []
    plain, _ = features(model, pixels, "none")
    for keep in KEEPS:
        for name, text in METHODS.items():
            plan = text.format(place=f"site=vision, layer={layer}", keep=keep)
            changed, kept = features(model, pixels, plan)
            found = errors(plain, changed, kept)
            out.append({"encoder": encoder, "method": name, "keep": keep, "layer": layer, "plan": plan, "errors": found})
            print(f"{encoder:8s} {name:10s} keep {keep}: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in found.items()))
    return out


def run(questions: int, out: Path) -> None:
    """Measure what the file does not hold yet."""
    model, processor = load_demo(None)
    samples = held_out_samples(questions, SEED)
    report: dict[str, Any] = {
        "what": "merging compared at equal numbers of tokens, demo model and a random SigLIP", "questions_per_task": questions,
        "seed": SEED, "device": "cpu", "dtype": "float32", "versions": versions(), "rows": [],
    }  # fmt: skip
    report = resumed(out, report, ("questions_per_task", "seed", "versions"))
    if "features" not in report:
        pictures = [sample.pixels()[0] for sample in samples[: PICTURES * 4 : 4]]
        stacked = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].to(model.dtype)
        report["features"] = feature_study(model, stacked, 2, "demo")
        random = torch.randn(4, 3, 378, 378, generator=torch.Generator().manual_seed(SEED))
        report["features"] += feature_study(siglip(), random, 6, "SigLIP")
        write_results(out, report)
    asked = [(sample, question) for sample in samples for question in sample.questions]
    prompts = Prompts.of(processor, asked)
    report["tasks"] = prompts.tasks
    done = {row["name"] for row in report["rows"]}
    for row in rows():
        if row.name not in done:
            right = prompts.right(model, row)
            report["rows"].append({"name": row.name, **asdict(row), **graded(right)})
            write_results(out, report)
            print(f"{row.name:40s} {right.mean():.3f}", flush=True)


PAGE = """# Merging compared

Made by `python -m benchmarks.merging`; raw file with every answer: `{raw}`. All plans of a row keep the same number of tokens.

## What the encoder's features lose

Relative squared error of what leaves the encoder, mean over pictures [95 % bootstrap]. *Own*: survivors against the plain
encoder's features at their places; merging changes a survivor on purpose. *Coverage*: every plain feature against the nearest
survivor; dropping what nothing resembles costs most. The SigLIP has random weights and sees noise: it shows that the code
scales and no more, since nothing in noise is similar enough to merge.

{features}

## What the answers lose

Exact match of the demo model on {count:,} held-out questions ({per_task} of each task). Plain: **{plain:.3f}**. Differences to
the plain model in points [paired 95 % bootstrap over questions]. *Encoder*: before encoder block 2 of 4; *decoder*: before
decoder layer 2 of 8; *both*: the square root of the share in each, so that the same number of tokens is left at the end. Random
draws one of five seeds per batch.

{answers}

{verdict}

## By task, keep {task_keep}

{tasks}
"""


def write_page(report: dict[str, Any], raw: Path, out: Path) -> None:
    """Write the page."""
    right = {row["name"]: answers(row) for row in report["rows"]}
    plain = right["plain keep 1.0"]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = PAGE.format(
        raw=raw.as_posix(), features=_feature_table(report["features"]), count=len(plain), plain=plain.mean(),
        per_task=report["questions_per_task"], answers=_answer_table(right), verdict=_verdict(right), task_keep=KEEPS[0],
        tasks=_task_table(right, np.array(report["tasks"])),
    )  # fmt: skip
    out.write_text(text, encoding="utf-8")


def _interval(values: Any) -> str:
    array = np.asarray(values, dtype=float)
    low, high = interval(array)
    return f"{array.mean():.3f} [{low:.3f}, {high:.3f}]"


def _feature_table(found: list[dict[str, Any]]) -> str:
    lines = []
    for encoder in dict.fromkeys(entry["encoder"] for entry in found):
        for keep in KEEPS:
            own = {e["method"]: e["errors"] for e in found if (e["encoder"], e["keep"]) == (encoder, keep)}
            for kind in ("own", "coverage"):
                lines.append([encoder, str(keep), kind, *(_interval(own[name][kind]) for name in METHODS)])
    return table(["encoder", "keep", "error", *METHODS], lines)


def _answer_table(right: dict[str, Any]) -> str:
    lines = []
    for place in ("encoder", "decoder", "both"):
        for keep in KEEPS:
            cells = []
            for name in METHODS:
                own = right.get(f"{place} {name} keep {keep}")
                if own is None:
                    cells.append("not defined" if name == "ToMe" else "not measured")
                    continue
                cells.append(beside(own, right["plain keep 1.0"]))
            lines.append([place, str(keep), *cells])
    return table(["place", "keep", *METHODS], lines)


def _verdict(right: dict[str, Any]) -> str:
    """Which method is best in each place, and which others its paired interval does not tell apart from it."""
    said = []
    for place in ("encoder", "decoder", "both"):
        for keep in KEEPS:
            own = {name: right[key] for name in METHODS if (key := f"{place} {name} keep {keep}") in right}
            if not own:
                continue
            best = max(own, key=lambda name: own[name].mean())
            level = [name for name in own if name != best and interval(100.0 * (own[best] - own[name]))[0] <= 0]
            beside = f"not told apart from it: {', '.join(level)}" if level else "all others are below it beyond their interval"
            said.append(f"- {place}, keep {keep}: **{best}** is best; {beside}.")
    return "\n".join(said)


def _task_table(right: dict[str, Any], tasks: Any) -> str:
    keep = KEEPS[0]
    names = [
        f"{place} {name}" for place in ("encoder", "decoder") for name in METHODS if f"{place} {name} keep {keep}" in right
    ]
    lines = []
    for task in dict.fromkeys(tasks.tolist()):
        own = tasks == task
        cells = [f"{right[f'{name} keep {keep}'][own].mean():.2f}" for name in names]
        lines.append([task, f"{right['plain keep 1.0'][own].mean():.2f}", *cells])
    return table(["task", "plain", *names], lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--questions", type=int, default=100, help="per task")
    measure.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--out", type=Path, default=Path("docs/merging.md"))
    options = parser.parse_args()
    if options.command == "run":
        run(options.questions, options.out)
    else:
        write_page(json.loads(options.results.read_text(encoding="utf-8")), options.results, options.out)


if __name__ == "__main__":
    main()
