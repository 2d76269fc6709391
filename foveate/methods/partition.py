"""Partition: keep the important tokens; every removed one joins the survivor that is most like it.

Ours, after ToMe's size-weighted means (arXiv 2210.09461) and VisionZip's important tokens (arXiv 2412.04467): nothing is thrown
away, nothing is counted twice, and what each survivor stands for can be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import Importance, Observation, TokenView
from foveate.methods._query import check_query
from foveate.ops.merging import pairs_of_nearest, to_nearest, weighted_mean


@dataclass(frozen=True)
class Partition(TokenMethod):
    """The most important tokens stay; each removed token is averaged into the most similar of them, weighted by size.

    Similarity is the cosine of hidden states.

    Attributes:
        query: whose attention counts in the decoder, as for fastv.
    """

    query: str = "last"

    sites = (SiteKind.VISION_LAYER, SiteKind.LLM_LAYER)
    merges = True
    paper = "ours"

    def __post_init__(self) -> None:
        check_query("partition", self.query)

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(query="window:4")

    def pairs_at_once(self, tokens: int) -> int:
        return pairs_of_nearest(tokens)  # each removed token with every survivor

    def needs(self) -> tuple[Observation, ...]:
        return (Importance(self.query),)

    def select(self, view: TokenView, keep: int) -> Selection:
        kept = top_indices(view.observe(self.needs()[0]), keep)
        if keep == view.token_count:
            return Selection(kept)
        return weighted_mean(kept, to_nearest(kept, view.features), view.sizes)
