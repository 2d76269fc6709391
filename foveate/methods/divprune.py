"""DivPrune: the tokens that are as different from each other as can be, without any attention.

Alvar et al., CVPR 2025, arXiv:2503.02175, Sec. 3 (max-min diversity). Written from the paper; the authors' code has a
non-commercial licence and was not used.
Differs: a running minimum makes a step cost O(N D) instead of a table of all pairs; each image is chosen from on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.ops.greedy import ROUNDING, ROWS_AT_ONCE, largest, nearest_neighbour, spread_out, unit_rows


@dataclass(frozen=True)
class DivPrune(TokenMethod):
    """Begin with the token whose nearest neighbour is farthest, then always take the one farthest from all that are kept.

    The distance is one minus the cosine of hidden states.
    """

    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "arXiv 2503.02175"

    def pairs_at_once(self, tokens: int) -> int:
        return min(tokens, ROWS_AT_ONCE) * tokens

    def select(self, view: TokenView, keep: int) -> Selection:
        points = unit_rows(view.features)
        first = largest(-nearest_neighbour(points), ROUNDING)
        return Selection(spread_out(points, first, keep, "cosine").sort(1).values)
