"""Cosine: the least redundant tokens, those whose mean similarity to all others is lowest, by one product.

The redundancy score of H Company's deployed models. The mean cosine to all tokens is a product with the sum of unit vectors,
so that no pair is ever compared. Written from that description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.ops.greedy import unit_rows

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Cosine(ScoreMethod):
    """Keep the tokens with the lowest mean cosine to all tokens of their image."""

    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "mean cosine"

    def score(self, view: TokenView) -> Tensor:
        points = unit_rows(view.features)
        mean = (points @ points.mean(1)[..., None])[..., 0]  # [G, N]
        return -mean.round(decimals=5)  # what differs behind that is rounding
