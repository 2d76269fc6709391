"""Random gate: a control for what decoding stores. A seeded draw for each token of an answer.

Dynamic-LLaVA's "Random" row (arXiv 2412.00876, Tab. 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, StepMethod
from foveate.core.view import StepView
from foveate.errors import SpecError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

_BITS = (1 << 32) - 1


@dataclass(frozen=True)
class RandomGate(StepMethod):
    """Store a seeded random share of the answer.

    Attributes:
        seed: of the draw. The n-th token of an answer has the same draw in every row, batch and pass, on every device.
    """

    seed: int = 0

    paper = "control"
    reads_features = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**32:
            raise SpecError(f"random_gate(seed={self.seed}): a seed is a whole number from 0 to {_BITS}")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (*super().examples(), cls(recent=0, seed=2**32 - 1))

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        assert keep is not None
        # A hash and no generator: the draw of token 1,000 must not need the 999 before it.
        mixed = view.number + 1 + (self.seed * 0x9E3779B1 & _BITS)
        for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (16, 0x297A2D39)):
            mixed = mixed & _BITS
            mixed = (mixed ^ (mixed >> shift)) * factor
        return (mixed & _BITS) < round(keep * (_BITS + 1))
