"""What decides any training of predictors: the settings that all share, and what each training says of itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from foveate.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.core.plan import Stage
    from foveate.engine.soft import SoftMode

FULL, LORA, PREDICTORS = "full", "lora", "predictors"
MODES = (FULL, LORA, PREDICTORS)
LEARNED, RANDOM, NONE = "learned", "random", "none"
MASKS = (LEARNED, RANDOM, NONE)
PRECISIONS = ("auto", "bf16", "fp32")
# What a resumed run may change: none of it decides a weight.
_FREE = ("log_every", "save_every", "eval_every", "report_to", "workers")
_SHARES = ("keep", "text_keep", "least_keep", "most_keep")
# Of each number, the least and the most: what is beyond would end in a lack of memory or processes, or in no result.
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("predictor_rate", "base_rate", "predictor_decay", "weight_decay"), (0, 1_000)),
    **dict.fromkeys(("penalty_weight", "max_grad_norm"), (0, 10**9)),
    **dict.fromkeys(("warmup", "lora_dropout", "straight"), (0, 1)),
    **dict.fromkeys(("log_every", "save_every", "eval_every", "steps", "epochs"), (1, 10**9)),
    **dict.fromkeys(("least_answer", "calibrate"), (0, 10**6)),
    **dict.fromkeys(("tau_start", "tau_end"), (0, 10**6)),
    **dict.fromkeys(("batch_size", "lora_rank"), (1, 2**14)),
    "lora_alpha": (0, 10**6),
    "accumulate": (1, 10**6),
    "max_length": (2, 2**20),
    "workers": (0, 256),
    "seed": (0, 2**32 - 1),
    "layer": (1, 1_000),
    "width": (4, 2**14),
    "heads": (1, 1_024),
    "feedforward": (1, 2**17),
    "blocks": (0, 64),
}


@dataclass(frozen=True)
class TrainingConfig(ABC):
    """A training.

    Attributes:
        mode: "full" trains language model, projector and predictors, "lora" an adapter on the language model and the
            predictors, "predictors" nothing else. The vision encoder is frozen in all of them.
        masks: "learned" is the method. Controls: "random" keeps random tokens, as many; "none" keeps all, for the same steps.
        keep: share of a picture's tokens that stays.
        tau_start, tau_end: temperature of the decisions in the first step and after the last one.
        predictor_rate, base_rate: learning rates of the predictors, and of everything else that trains.
        predictor_decay, weight_decay: of the same two; norms and biases never decay.
        warmup: share of the steps in which both rates rise; then they fall as a cosine.
        width, heads, feedforward, blocks: of the predictors.
        batch_size: rows per device and pass.
        accumulate: passes per step.
        epochs: how often each row is seen; ignored where `steps` is given.
        steps: optimizer steps.
        max_length: columns of a row; longer answers are cut.
        seed: of predictors, masks and order of rows.
        precision: "bf16" computes in bfloat16 over float32 weights, "fp32" does not, "auto" is bf16 on a GPU that has it.
        checkpointing: recompute activations in backward, for less memory.
        max_grad_norm: longer gradients are scaled down to it.
        lora_rank, lora_alpha, lora_dropout: of the adapter.
        workers: processes that read pictures.
        log_every, save_every, eval_every: steps between two logs, checkpoints and validations; no validation for None.
        report_to: where transformers' Trainer reports to besides the log file, e.g. "wandb".

    Class attributes:
        name: of the command.
        paper: where the method comes from.

    Raises:
        InputError: one line that names the option, what it is and what it can be.
    """

    mode: str = FULL
    masks: str = LEARNED
    keep: float = 0.2
    tau_start: float = 1.0
    tau_end: float = 0.1
    predictor_rate: float = 2e-4
    base_rate: float = 5e-6
    predictor_decay: float = 0.0
    weight_decay: float = 0.0
    warmup: float = 0.03
    width: int = 512
    heads: int = 8
    feedforward: int = 2048
    blocks: int = 2
    batch_size: int = 8
    accumulate: int = 1
    epochs: int = 1
    steps: int | None = None
    max_length: int = 2048
    seed: int = 0
    precision: str = "auto"
    checkpointing: bool = False
    max_grad_norm: float = 1.0
    lora_rank: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.05
    workers: int = 0
    log_every: int = 10
    save_every: int = 500
    eval_every: int | None = None
    report_to: str = "none"

    name: ClassVar[str]
    paper: ClassVar[str]

    def __post_init__(self) -> None:
        self.check_choice("mode", MODES)
        self.check_choice("masks", MASKS)
        self.check_choice("precision", PRECISIONS)
        if self.masks != LEARNED and self.mode == PREDICTORS:
            raise InputError("--masks random and none train no predictors: use them with --mode full or lora")
        known = [one.name for one in fields(self)]
        for name in filter(known.__contains__, _SHARES):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise InputError(f"{option(name)} {share}: a share is more than 0 and at most 1")
        for name in filter(known.__contains__, _BOUNDS):
            (least, most), value = _BOUNDS[name], getattr(self, name)
            if value is None and name in ("steps", "eval_every"):
                continue
            kinds = (int, float) if isinstance(getattr(type(self), name), float) else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:  # NaN neither
                raise InputError(f"{option(name)} {value}: it must be at least {least}, and at most {most:,}")
        if self.width % self.heads or self.width % 4:
            raise InputError(f"--width {self.width} must be a multiple of --heads {self.heads} and of 4")
        if not (0 < self.tau_end <= self.tau_start):
            raise InputError(f"the temperature falls from --tau-start {self.tau_start} to --tau-end {self.tau_end}, above 0")
        if self.warmup >= 1 or self.lora_dropout >= 1:
            raise InputError("--warmup and --lora-dropout are shares below 1")

    def check_choice(self, name: str, known: tuple[str, ...]) -> None:
        """Refuse a setting that is none of the known words."""
        if (given := getattr(self, name)) not in known:
            raise InputError(f"{option(name)} is {', '.join(known[:-1])} or {known[-1]}, not '{given}'")

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """What trains, without weights."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """The fields of `PredictorConfig` that follow from the settings."""

    @abstractmethod
    def spec(self, out: Path) -> str:
        """The plan that uses the result."""

    @abstractmethod
    def prepare(self, soft: SoftMode) -> None:
        """Say how decisions are made, once."""

    def at_step(self, soft: SoftMode, step: int, steps: int) -> None:
        """Say how decisions are made at a step; it follows from the step alone."""
        soft.tau = self.tau(step, steps)

    def penalty(self, soft: SoftMode) -> Tensor | None:
        """What a pass pays beside the model's loss, not weighted yet; None for nothing."""
        return None

    @property
    def penalty_factor(self) -> float:
        """Its weight."""
        return 0.0

    def tau(self, step: int, steps: int) -> float:
        """The temperature of a step, falling exponentially: `tau_start` at step 0, `tau_end` at step `steps`."""
        return float(self.tau_start * (self.tau_end / self.tau_start) ** (step / max(steps, 1)))

    def steps_for(self, rows: int, processes: int = 1) -> int:
        """Optimizer steps of a run over `rows` rows."""
        if self.steps is not None:
            return self.steps
        batches = math.ceil(rows / (self.batch_size * processes))
        return math.ceil(batches / self.accumulate) * self.epochs

    def smoke(self) -> Self:
        """The smallest run that exercises every part; it learns nothing."""
        sizes = {"width": 16, "heads": 2, "feedforward": 32, "blocks": 1, "batch_size": 2, "steps": 4, "lora_rank": 2}
        return replace(self, **sizes, log_every=1, save_every=2)  # type: ignore[arg-type]

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The settings in which a stored run differs from this one, as far as they decide weights."""
        mine = asdict(self)
        return [name for name in mine if name not in _FREE and mine[name] != other.get(name)]


def option(name: str) -> str:
    """A setting as it is written on the command line."""
    return "--" + name.replace("_", "-")
