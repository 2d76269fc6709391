"""Farthest point sampling: a control of diversity. The corners of the cloud of hidden states, lengths included.

Eldar et al., "The farthest point strategy for progressive image sampling", IEEE Transactions on Image Processing, 1997.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.ops.greedy import largest, spread_out

# Squares of what is larger are no numbers.
_LARGE = 1e15


@dataclass(frozen=True)
class Fps(TokenMethod):
    """Begin with the token farthest from the mean, then always take the one farthest from all that are kept (Euclidean)."""

    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "Eldar et al. 1997"

    def select(self, view: TokenView, keep: int) -> Selection:
        points = view.features.detach().float().nan_to_num(0.0).clamp(-_LARGE, _LARGE)
        # Two tokens are equally far from their mean: the earlier one begins.
        first = largest((points - points.mean(1, keepdim=True)).square().sum(2))
        return Selection(spread_out(points, first, keep, "euclidean").sort(1).values)
