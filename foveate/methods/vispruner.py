"""VisPruner: important tokens by the encoder's attention, and diverse ones among the others.

Zhang et al., ICCV 2025, arXiv:2412.01818. Written from the paper's mathematics.
Differs: similarity is that of tokens as the language model reads them; the last round removes no more than is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import EncoderAttention, Observation, TokenView
from foveate.errors import SpecError
from foveate.ops.merging import nearest, pairs_of_nearest, removed_indices, take_rows


@dataclass(frozen=True)
class VisPruner(TokenMethod):
    """A share of the kept tokens by attention; of the rest, those with a twin among their neighbours in order leave.

    A round splits what is left into alternating sets and removes the tokens of the first that are most like one of the second.
    With `important=1` this is FasterVLM (arXiv 2412.01818, version 1).

    Attributes:
        important: share of the kept tokens that attention chooses; the authors take .75 for small budgets.
        at_once: tokens removed in a round; a larger number is faster.
    """

    important: float = 0.5
    at_once: int = 8

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2412.01818"

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1 or self.at_once < 1:
            raise SpecError("vispruner: important is a share from 0 to 1, at_once a count of at least 1")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(important=1.0), cls(important=0.25, at_once=3)

    def pairs_at_once(self, tokens: int) -> int:
        return pairs_of_nearest(tokens)

    def needs(self) -> tuple[Observation, ...]:
        return (EncoderAttention(),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        important = top_indices(view.observe(EncoderAttention()), int(keep * self.important + 0.5))
        rest = removed_indices(important, view.token_count)
        wanted = keep - important.shape[1]
        while rest.shape[1] > wanted and wanted:
            first, second = rest[:, ::2], rest[:, 1::2]
            similarity, _ = nearest(take_rows(view.features, first), take_rows(view.features, second))
            leaving = min(self.at_once, rest.shape[1] - wanted, first.shape[1])
            order = similarity.argsort(dim=1, descending=True, stable=True)
            left = first.gather(1, order[:, leaving:])
            rest = torch.cat([left, second], 1).sort(1).values
        return Selection(torch.cat([important, rest[:, :wanted]], 1).sort(1).values)
