"""Stride gate: a control for what decoding stores. Evenly spaced tokens of an answer.

Dynamic-LLaVA's "Structure" row (arXiv 2412.00876, Tab. 3) is keep=0.5: every other token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import StepMethod
from foveate.core.view import StepView

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class StrideGate(StepMethod):
    """Store evenly spaced tokens of the answer."""

    paper = "control"
    reads_features = False

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        assert keep is not None
        # Token n is stored where n * keep passes a whole number; in whole millionths, so that every device agrees.
        share = round(keep * 1_000_000)
        return (view.number + 1) * share // 1_000_000 > view.number * share // 1_000_000
