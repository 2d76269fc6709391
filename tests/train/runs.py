"""A tiny model of the demo's kind, rows for it, and short runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from demo_model.model import DemoModelConfig, build_model
from demo_model.processor import build_processor
from foveate.train.config import DynamicLlavaConfig
from foveate.train.run import Outcome, train_predictors
from foveate.train.selector import SelectorConfig

SIZES = DemoModelConfig(64, 1, 1, 64, 64, 3, 1, 64)
SETTINGS: dict[str, Any] = {
    "layer": 1,
    "width": 16,
    "heads": 2,
    "feedforward": 32,
    "blocks": 1,
    "batch_size": 2,
    "steps": 6,
    "least_answer": 3,
    "predictor_rate": 1e-2,
    "base_rate": 1e-3,
    "log_every": 1,
    "save_every": 3,
    "precision": "fp32",
}


@cache
def processor() -> Any:
    return build_processor(0, 100)


def load(seed: int = 3) -> tuple[Any, Any]:
    """A random model and a processor."""
    return build_model(processor().tokenizer, SIZES, seed=seed), processor()


def settings(**changes: Any) -> DynamicLlavaConfig:
    return DynamicLlavaConfig(**(SETTINGS | changes))


def selector_settings(**changes: Any) -> SelectorConfig:
    shared = {name: value for name, value in SETTINGS.items() if name not in ("layer", "least_answer")}
    return SelectorConfig(**(shared | changes))


class Rows:
    """Conversations with short and long answers, with a picture and without; seen in a random order."""

    shuffles = True

    def __init__(self, count: int = 6, stop_at: int | None = None) -> None:
        self.count, self.stop_at, self.read = count, stop_at, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        self.read += 1
        if self.read == self.stop_at:
            raise KeyboardInterrupt
        question: list[dict[str, Any]] = [{"type": "text", "text": f"what is at place {index}?"}]
        if index % 3:
            picture = Image.linear_gradient("L").rotate(50 * index).resize((96, 96)).convert("RGB")
            question.insert(0, {"type": "image", "image": picture})
        answer = "a red star" if index % 2 else "there are 3 objects. a large blue circle at the top."
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]


def train(out: Path, rows: Any = None, resume: bool = False, make: Any = settings, **changes: Any) -> Outcome:
    """A run in silence."""
    validation = Rows(2) if changes.get("eval_every") else None
    config = make(**changes)
    quiet = Console(quiet=True)
    return train_predictors(load, rows or Rows(), out, config, validation=validation, data="rows", resume=resume, console=quiet)
