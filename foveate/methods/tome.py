"""ToMe: merge the most similar tokens, wherever they are.

Bolya et al., ICLR 2023, arXiv:2210.09461, Sec. 3. Written from the paper.
Differs: a budget below half is met by several rounds at one place; survivors stay in raster order; hidden states are compared,
not keys; proportional attention is an option.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.ops.merging import bipartite_hosts, pairs_of_nearest, weighted_mean


@dataclass(frozen=True)
class Tome(TokenMethod):
    """Bipartite soft matching: alternating tokens are linked to their most similar partner, the most similar links merge.

    Attributes:
        proportional: attention in this and all later encoder layers adds log(size) to the scores of each key (Sec. 3,
            "Tracking token size"), as if merged tokens were still there as often. Inside encoders of one row per picture.
    """

    proportional: bool = False

    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    merges = True
    paper = "arXiv 2210.09461"

    @property
    def weighs_sizes(self) -> bool:
        return self.proportional

    def pairs_at_once(self, tokens: int) -> int:
        return pairs_of_nearest(tokens)  # each token of set A with every one of set B

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        if keep == view.token_count:
            return Selection(torch.arange(keep, device=view.features.device).expand(view.group_count, -1))
        kept, host = bipartite_hosts(view.features, view.sizes, keep)
        return weighted_mean(kept, host, view.sizes)
