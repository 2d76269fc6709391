"""DivPrune: the tokens that are as different from each other as can be, without any attention.

Alvar et al., CVPR 2025, arXiv:2503.02175, Sec. 3 (max-min diversity). Written from the paper; the authors' code has a
non-commercial licence and was not used.
Differs: a running minimum makes a step cost O(N D) instead of a table of all pairs; each image is chosen from on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.ops.greedy import ROUNDING, ROWS_AT_ONCE, largest, nearest_neighbour, spread_out, unit_rows
from foveate.ops.splitting import check_split, in_parts

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class DivPrune(TokenMethod):
    """Begin with the token whose nearest neighbour is farthest, then always take the one farthest from all that are kept.

    The distance is one minus the cosine of hidden states.

    Attributes:
        split: choose within every `split`-th token at a time: about as many times faster.
    """

    split: int = 1

    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "arXiv 2503.02175"
    published = (
        "89.3 and 76.1 % of full on 11 tasks at 25 and 10 % of the tokens, DocVQA 85.3 and 66.2 of 94.9 "
        "(Qwen2.5-VL-7B; Tencent AngelSlim)"
    )

    def __post_init__(self) -> None:
        check_split("divprune", self.split)

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(split=3)

    def pairs_at_once(self, tokens: int) -> int:
        return min(tokens, ROWS_AT_ONCE) * tokens

    def select(self, view: TokenView, keep: int) -> Selection:
        points = unit_rows(view.features)

        def farthest(tokens: Tensor, share: int) -> Tensor:
            own = points[:, tokens]
            return spread_out(own, largest(-nearest_neighbour(own), ROUNDING), share, "cosine")

        return Selection(in_parts(points, keep, self.split, farthest))
