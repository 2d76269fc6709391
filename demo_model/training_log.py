"""The record of a demo training: one JSON line per validation, and a line for people while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

PRINT_EVERY_STEPS = 50
SMOOTHING = 0.97


class TrainingLog:
    """Averages losses, prints a line now and then and appends validations to a file."""

    def __init__(self, path: Path, steps: Mapping[str, int]) -> None:
        self._path = path
        self._steps = steps
        self._console = Console(highlight=False)
        self._means: dict[str, float] = {}
        self._phase = ""
        self._pictures = 0.0
        self._since = 0.0

    def step(self, phase: str, step: int, minute: float, losses: Mapping[str, float]) -> None:
        """Take in the losses of one step; `pictures` among them is counted, not averaged."""
        if phase != self._phase:
            self._phase, self._means, self._pictures, self._since = phase, {}, 0.0, minute
        self._pictures += losses["pictures"]
        for name, value in losses.items():
            if name != "pictures":
                mean = self._means.get(name, value)
                self._means[name] = SMOOTHING * mean + (1 - SMOOTHING) * value
        if step % PRINT_EVERY_STEPS == 0:
            text = "  ".join(f"{name} {value:.3f}" for name, value in self._means.items())
            done = f"{phase}  step {step} of {self._steps[phase]}  minute {minute:.1f}"
            line = f"{done}  {text}  {self._speed(minute):.1f} pictures/s"
            # A terminal keeps one moving line, a log file keeps all.
            self._console.print(line, end="\r" if self._console.is_terminal else "\n", soft_wrap=True)

    def validation(self, phase: str, step: int, minute: float, scores: Mapping[str, float]) -> None:
        """Append held-out scores to the file and print them."""
        record: dict[str, Any] = {"phase": phase, "step": step, "minute": round(minute, 2)}
        record |= {f"loss_{name}": round(value, 4) for name, value in self._means.items()}
        record["pictures_per_second"] = round(self._speed(minute), 2)
        record |= {name: round(value, 4) for name, value in scores.items()}
        line = json.dumps(record)
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._console.print(line, soft_wrap=True)

    def _speed(self, minute: float) -> float:
        seconds = 60 * (minute - self._since)
        return self._pictures / seconds if seconds > 0 else 0.0
