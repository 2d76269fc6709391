"""What decides a training of the demo model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from demo_model.model import DemoModelConfig
from foveate.demo.pictures import MAX_OBJECTS
from foveate.demo.samples import QUESTIONS_PER_PICTURE
from foveate.errors import InputError

_BOUNDS = {
    "threads": (1, 256),
    "steps": (1, 10**7),
    "vision_steps": (1, 10**7),
    "batch_size": (1, 4_096),
    "vision_batch_size": (1, 4_096),
    "seed": (0, 2**32 - 1),
}
_SMALLEST = {
    "vision_width": 64,
    "vision_layers": 1,
    "vision_heads": 1,
    "vision_mlp": 64,
    "text_width": 64,
    "text_layers": 2,
    "text_heads": 1,
    "text_mlp": 64,
}


@dataclass(frozen=True)
class DemoTrainingConfig:
    """Everything that decides a run. `smoke` replaces sizes and steps by the smallest that exercise every part."""

    out: Path
    vision_steps: int = 1200
    steps: int = 4000
    seed: int = 1
    threads: int = 1
    batch_size: int = 16
    vision_batch_size: int = 32
    question_limit: int = QUESTIONS_PER_PICTURE
    learning_rate: float = 2e-3
    vision_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_steps: int = 1400
    vision_decay_steps: int = 500
    curriculum_steps: int = 800
    first_objects: int = 3
    several_from: int = 900  # step of the first batch of pairs and clips
    focus_from: int = 2300  # step of the first batch of nothing but signs, or charts to add up
    question_weight: float = 3.0
    long_share: float = 0.6  # of the pictures that come with a question that has a long answer
    auxiliary_weight: float = 0.3
    checkpoint_minutes: float = 5.0
    validation_pictures: int = 128
    vocabulary_samples: int = 3000
    precision: str = "bfloat16"  # "float32" is faster on a CPU without AVX512-BF16 or AMX
    detailed: bool = False  # pages, tables, tiny objects and photo-like backgrounds too
    start: Path | None = None  # a smaller demo model, to begin with its weights
    model: DemoModelConfig = field(default_factory=DemoModelConfig)
    smoke: bool = False

    def resolved(self) -> DemoTrainingConfig:
        """Return the configuration that runs."""
        if not self.smoke:
            return self
        return replace(
            self,
            vision_steps=20,
            steps=60,
            warmup_steps=5,
            decay_steps=20,
            vision_decay_steps=10,
            curriculum_steps=10,
            several_from=20,
            focus_from=30,
            batch_size=4,
            vision_batch_size=4,
            checkpoint_minutes=0.05,
            validation_pictures=8,
            vocabulary_samples=200,
            model=replace(self.model, **_SMALLEST),
        )

    def continued(self, start: Path) -> DemoTrainingConfig:
        """Return the recipe that goes on from the weights in a folder, at four times the visual tokens."""
        return replace(
            self,
            start=start,
            detailed=True,
            model=DemoModelConfig(picture_pixels=192),
            vision_steps=500,
            steps=1800,
            batch_size=12,
            learning_rate=1e-3,
            vision_learning_rate=1.5e-3,
            warmup_steps=50,
            decay_steps=800,
            vision_decay_steps=250,
            curriculum_steps=1,
            first_objects=MAX_OBJECTS,
            several_from=300,
            focus_from=900,
            checkpoint_minutes=15.0,
            validation_pictures=96,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings without the folders."""
        settings = asdict(self)
        del settings["out"]
        return settings | {"start": self.start and self.start.name}


def check_settings(config: DemoTrainingConfig) -> None:
    """Refuse numbers that no machine can run.

    Raises:
        InputError: one line that names the option.
    """
    for name, (least, most) in _BOUNDS.items():
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= most:
            raise InputError(f"--{name} is a whole number from {least} to {most:,}")
    for name in ("learning_rate", "vision_learning_rate", "weight_decay"):
        if not 0 <= getattr(config, name) < 1_000:  # NaN neither
            raise InputError(f"{name} is a finite number of at least 0")
