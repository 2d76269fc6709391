"""Everything that decides a training of Dynamic-LLaVA's predictors, with the paper's numbers as defaults.

Huang et al., ICLR 2025, arXiv:2412.00876, Sec. 4.1 and App. A.4, and the authors' published command lines.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from foveate.errors import InputError

FULL, LORA, PREDICTORS = "full", "lora", "predictors"
MODES = (FULL, LORA, PREDICTORS)
LEARNED, RANDOM, NONE = "learned", "random", "none"
MASKS = (LEARNED, RANDOM, NONE)
PRECISIONS = ("auto", "bf16", "fp32")
# What a resumed run may change: none of it decides a weight.
_FREE = ("log_every", "save_every", "eval_every", "report_to", "workers")
# Of each number, the least and the most: what is beyond would end in a lack of memory or processes, or in no result.
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("predictor_rate", "base_rate", "predictor_decay", "weight_decay"), (0, 1_000)),
    **dict.fromkeys(("penalty_weight", "max_grad_norm"), (0, 10**9)),
    **dict.fromkeys(("warmup", "lora_dropout"), (0, 1)),
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
class DynamicLlavaConfig:
    """A training.

    Attributes:
        mode: "full" trains language model, projector and predictors, "lora" an adapter on the language model and the
            predictors, "predictors" nothing else. The vision encoder is frozen in all of them.
        masks: "learned" is the method. Controls: "random" keeps random tokens, as many; "none" keeps all, for the same steps.
        layer: the decoder layer in front of which tokens are judged.
        keep: share of a picture's tokens that stays (r_I).
        text_keep: share of an answer's tokens that stays (r_OT); None trains no predictor for answers.
        least_answer: shorter answers are kept whole while training (LEN).
        penalty_weight: of the distance of the shares from their targets (lambda).
        tau_start, tau_end: temperature of the Gumbel-softmax in the first step and after the last one.
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
        calibrate: held-out rows (rows of the training where there are none) on which margins are shifted afterwards, until
            finished decisions keep the shares; 0 leaves them as trained.
        lora_rank, lora_alpha, lora_dropout: of the adapter.
        workers: processes that read pictures.
        log_every, save_every, eval_every: steps between two logs, checkpoints and validations; no validation for None.
        report_to: where transformers' Trainer reports to besides the log file, e.g. "wandb".
    """

    mode: str = FULL
    masks: str = LEARNED
    layer: int = 2
    keep: float = 0.2
    text_keep: float | None = 0.5
    least_answer: int = 50
    penalty_weight: float = 100.0
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
    calibrate: int = 256
    lora_rank: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.05
    workers: int = 0
    log_every: int = 10
    save_every: int = 500
    eval_every: int | None = None
    report_to: str = "none"

    def __post_init__(self) -> None:
        for name, given, known in (
            ("mode", self.mode, MODES),
            ("masks", self.masks, MASKS),
            ("precision", self.precision, PRECISIONS),
        ):
            if given not in known:
                raise InputError(f"{_option(name)} is {', '.join(known[:-1])} or {known[-1]}, not '{given}'")
        if self.masks != LEARNED and self.mode == PREDICTORS:
            raise InputError("--masks random and none train no predictors: use them with --mode full or lora")
        for name in ("keep", "text_keep"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise InputError(f"{_option(name)} {share}: a share is more than 0 and at most 1")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "eval_every"):
                continue
            kinds = (int, float) if isinstance(getattr(type(self), name), float) else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:  # NaN neither
                raise InputError(f"{_option(name)} {value}: it must be at least {least}, and at most {most:,}")
        if self.width % self.heads or self.width % 4:
            raise InputError(f"--width {self.width} must be a multiple of --heads {self.heads} and of 4")
        if not (0 < self.tau_end <= self.tau_start):
            raise InputError(f"the temperature falls from --tau-start {self.tau_start} to --tau-end {self.tau_end}, above 0")
        if self.warmup >= 1 or self.lora_dropout >= 1:
            raise InputError("--warmup and --lora-dropout are shares below 1")

    def tau(self, step: int, steps: int) -> float:
        """The temperature of a step, falling exponentially: `tau_start` at step 0, `tau_end` at step `steps`."""
        return float(self.tau_start * (self.tau_end / self.tau_start) ** (step / max(steps, 1)))

    def steps_for(self, rows: int, processes: int = 1) -> int:
        """Optimizer steps of a run over `rows` rows."""
        if self.steps is not None:
            return self.steps
        batches = math.ceil(rows / (self.batch_size * processes))
        return math.ceil(batches / self.accumulate) * self.epochs

    def smoke(self) -> DynamicLlavaConfig:
        """The smallest run that exercises every part; it learns nothing."""
        sizes = {"width": 16, "heads": 2, "feedforward": 32, "blocks": 1, "batch_size": 2, "steps": 4, "lora_rank": 2}
        sizes |= {"least_answer": min(self.least_answer, 4), "calibrate": min(self.calibrate, 4)}
        return replace(self, **sizes, log_every=1, save_every=2)  # type: ignore[arg-type]

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The settings in which a stored run differs from this one, as far as they decide weights."""
        mine = asdict(self)
        return [name for name in mine if name not in _FREE and mine[name] != other.get(name)]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
