"""Random: a control. A seeded draw, the same for a row alone and in company, on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.errors import SpecError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Random(ScoreMethod):
    """Keep a seeded random subset.

    Attributes:
        seed: of the draw. Every group draws its own numbers from (seed, number of the medium within its row).
    """

    seed: int = 0

    reads_features = False
    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "control"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise SpecError(f"random(seed={self.seed}): a seed is a whole number from 0 to {2**32 - 1}")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(seed=3), cls(seed=2**32 - 1)

    def score(self, view: TokenView) -> Tensor:
        import torch

        # Drawn on the CPU, so that the same seed keeps the same tokens on every device.
        rows = []
        for key in view.group_keys:
            generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + key)
            rows.append(torch.rand(view.token_count, generator=generator, dtype=torch.float32, device="cpu"))
        return torch.stack(rows).to(view.features.device, non_blocking=True)
