"""Accuracy of the embedded demo model under plans, with controls at the same count and paired 95 % intervals.

    python benchmarks/demo_accuracy.py --questions 125 --out benchmarks/results/NAME.json

Exact match of greedy answers on held-out rendered pictures, one picture and one question per prompt, through generate().
"Difference" is against the plain model on the same questions, with a paired bootstrap over questions.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

import foveate
from foveate.demo.evaluation import generate_answers, held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.demo.questions import Question
from foveate.demo.samples import Sample

LAYER = 3
KEEPS = (0.5, 0.25, 0.1)
BATCH, NEW_TOKENS, RESAMPLES, SEED = 50, 6, 2000, 1


def candidates() -> dict[str, str | float]:
    """Name -> plan, or the share of pixels of the downsampling control."""
    rows: dict[str, str | float] = {"plain": "none"}
    for keep in KEEPS:
        rows[f"fastv keep {keep}"] = f"fastv(layer={LAYER}, keep={keep})"
        rows[f"random keep {keep}"] = f"random(layer={LAYER}, keep={keep})"
        rows[f"uniform keep {keep}"] = f"uniform(layer={LAYER}, keep={keep})"
    rows["pool 2x2 (keeps .25)"] = f"pool(layer={LAYER})"
    rows["downsample to .25 of the pixels, all tokens"] = 0.25
    return rows


def downsampled(sample: Sample, keep: float) -> Any:
    """The sample's picture with fewer pixels, brought back to its size."""
    picture = Image.fromarray(sample.pixels)
    side = max(1, round(picture.width * math.sqrt(keep)))
    small = picture.resize((side, side), Image.Resampling.LANCZOS).resize(picture.size, Image.Resampling.BICUBIC)
    return SimpleNamespace(pixels=np.asarray(small))


def right_answers(model: Any, processor: Any, asked: Sequence[tuple[Sample, Question]], row: str | float) -> np.ndarray:
    """1.0 for every question answered exactly."""
    if isinstance(row, float):
        asked = [(downsampled(sample, row), question) for sample, question in asked]
    right: list[float] = []
    for start in range(0, len(asked), BATCH):
        chosen = asked[start : start + BATCH]
        # Another seed per batch: the random control does not stand or fall with one pattern.
        plan = row.replace(")", f", seed={start})") if isinstance(row, str) and row.startswith("random") else row
        attached = foveate.attach(model, plan) if isinstance(plan, str) and plan != "none" else nullcontext()
        with attached, torch.inference_mode():
            texts = generate_answers(model, processor, chosen, NEW_TOKENS)
        right += [float(text == question.answer) for text, (_, question) in zip(texts, chosen, strict=True)]
    return np.array(right)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    random = np.random.default_rng(SEED)
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    """Run every row and write the JSON; prints a table as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=125, help="per task")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None, help="a trained demo model; the shipped one if left out")
    options = parser.parse_args()
    model, processor = load_demo(options.model)
    samples = held_out_samples(options.questions, seed=SEED)
    asked = [(sample, question) for sample in samples for question in sample.questions]
    asked.sort(key=lambda pair: len(pair[1].text))
    tasks = np.array([question.task for _, question in asked])
    plain = np.zeros(0)
    rows = []
    for name, row in candidates().items():
        right = right_answers(model, processor, asked, row)
        plain = right if not len(plain) else plain
        low, high = interval(right - plain)
        result = {
            "name": name,
            "plan": row if isinstance(row, str) else "none",
            "accuracy": float(right.mean()),
            "difference": float((right - plain).mean()),
            "difference_95": [low, high],
            "per_task": {task: float(right[tasks == task].mean()) for task in sorted(set(tasks))},
        }
        rows.append(result)
        print(f"{name:45s} {right.mean():.3f}  difference {result['difference']:+.3f} [{low:+.3f}, {high:+.3f}]", flush=True)
    report = {
        "what": "exact match of greedy answers of the embedded demo model, held-out rendered pictures",
        "questions_per_task": options.questions,
        "questions": len(asked),
        "seed": SEED,
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "versions": versions(),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
