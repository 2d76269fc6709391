"""Random: a control. A seeded draw, the same for a row alone and in company, on every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import ScoreMethod
from foveate.core.view import TokenView


@dataclass(frozen=True)
class Random(ScoreMethod):
    """Keep a seeded random subset.

    Attributes:
        seed: of the draw. Every group draws its own numbers from (seed, number of the medium within its row).
    """

    seed: int = 0

    reads_features = False
    paper = "control"

    def score(self, view: TokenView) -> Tensor:
        # Drawn on the CPU, so that the same seed keeps the same tokens on every device.
        rows = []
        for key in view.group_keys:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + key)
            rows.append(torch.rand(view.token_count, generator=generator))
        return torch.stack(rows).to(view.features.device, non_blocking=True)
