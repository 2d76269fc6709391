"""VisPruner: important tokens by the encoder's attention, and diverse ones among the others.

Zhang et al., ICCV 2025, arXiv:2412.01818. Written from the paper's mathematics.
Differs: similarity is that of tokens as the language model reads them; the last round removes no more than is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import EncoderAttention, Observation, TokenView
from foveate.errors import SpecError
from foveate.ops.greedy import unit_rows
from foveate.ops.merging import removed_indices, take_rows
from foveate.ops.splitting import check_split, in_parts

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class VisPruner(TokenMethod):
    """A share of the kept tokens by attention; of the rest, those with a twin among their neighbours in order leave.

    A round splits what is left into alternating sets and removes the tokens of the first that are most like one of the second.
    With `important=1` this is FasterVLM (arXiv 2412.01818, version 1). It holds a number for every two tokens of an image, one
    image at a time: 32 MiB for 2,880.

    Attributes:
        important: share of the kept tokens that attention chooses; the authors take .75 for small budgets.
        at_once: tokens removed in a round; a larger number is faster.
        split: choose within every `split`-th token at a time: about as many times faster.
    """

    important: float = 0.5
    at_once: int = 8
    split: int = 1

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2412.01818"
    published = (
        "88.3 and 72.6 % of full on 11 tasks at 25 and 10 % of the tokens, DocVQA 77.4 and 50.9 of 94.9 "
        "(Qwen2.5-VL-7B; Tencent AngelSlim)"
    )

    def __post_init__(self) -> None:
        check_split("vispruner", self.split)
        if not 0 <= self.important <= 1 or self.at_once < 1:
            raise SpecError("vispruner: important is a share from 0 to 1, at_once a count of at least 1")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(important=1.0), cls(important=0.25, at_once=3, split=2)

    def pairs_at_once(self, tokens: int) -> int:
        return 2 * tokens**2  # and a copy of what a round compares

    def needs(self) -> tuple[Observation, ...]:
        return (EncoderAttention(),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        important = top_indices(view.observe(EncoderAttention()), int(keep * self.important + 0.5))
        rest = removed_indices(important, view.token_count)
        wanted = keep - important.shape[1]

        def without_twins(tokens: Tensor, share: int) -> Tensor:
            own = take_rows(view.features, rest[:, tokens])
            return torch.stack([self._without_twins(unit_rows(states), share) for states in own])

        others = in_parts(rest, wanted, self.split, without_twins)
        return Selection(torch.cat([important, rest.gather(1, others)], 1).sort(1).values)

    def _without_twins(self, points: Tensor, keep: int) -> Tensor:
        """Places [keep] of what is left of unit vectors [N, D]."""
        import torch

        similarity = points @ points.T
        rest = torch.arange(len(points), device=points.device)
        while len(rest) > keep:
            first, second = rest[::2], rest[1::2]
            nearest = similarity[first].index_select(1, second).amax(1)
            leaving = min(self.at_once, len(rest) - keep, len(first))
            left = first[nearest.argsort(descending=True, stable=True)[leaving:]]
            rest = torch.cat([left, second]).sort().values
        return rest
