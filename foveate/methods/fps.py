"""Farthest point sampling: a control of diversity. The corners of the cloud of hidden states, lengths included.

Eldar et al., "The farthest point strategy for progressive image sampling", IEEE Transactions on Image Processing, 1997.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.ops.greedy import largest, spread_out
from foveate.ops.splitting import check_split, in_parts

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Squares of what is larger are no numbers.
_LARGE = 1e15


@dataclass(frozen=True)
class Fps(TokenMethod):
    """Begin with the token farthest from the mean, then always take the one farthest from all that are kept (Euclidean).

    Attributes:
        split: choose within every `split`-th token at a time: about as many times faster.
    """

    split: int = 1

    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "Eldar et al. 1997"

    def __post_init__(self) -> None:
        check_split("fps", self.split)

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(split=3)

    def select(self, view: TokenView, keep: int) -> Selection:
        points = view.features.detach().float().nan_to_num(0.0).clamp(-_LARGE, _LARGE)

        def corners(tokens: Tensor, share: int) -> Tensor:
            own = points[:, tokens]
            # Two tokens are equally far from their mean: the earlier one begins.
            first = largest((own - own.mean(1, keepdim=True)).square().sum(2))
            return spread_out(own, first, share, "euclidean")

        return Selection(in_parts(points, keep, self.split, corners))
