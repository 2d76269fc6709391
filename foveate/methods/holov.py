"""HoloV: every part of a picture keeps some of its tokens, parts with more to tell keep more.

Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention", NeurIPS 2025,
arXiv:2510.02912. Written from the paper's mathematics.
Differs: where a part would keep more tokens than it has, the others keep them (the authors' program fills up with zeros).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import EncoderAttention, Observation, TokenView
from foveate.errors import SpecError
from foveate.ops.greedy import unit_rows

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class HoloV(TokenMethod):
    """Cut the raster into parts; a part's share follows from attention and from how uneven its similarities are.

    Inside a part the tokens with the most attention stay.

    Attributes:
        parts: into how many stretches of equal length a picture is cut.
        context: how much unevenness counts beside attention.
    """

    parts: int = 16
    context: float = 0.09

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2510.02912"
    published = "96.5, 96.1 and 92.9 % of full at 192, 128 and 64 of 576 tokens (LLaVA-1.5-7B, 9 benchmarks; the FSR paper)"

    def __post_init__(self) -> None:
        if self.parts < 1 or not 0 <= self.context <= 1000:
            raise SpecError("holov: parts is at least 1, context a weight from 0 to 1000")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(parts=3, context=0.5)

    def pairs_at_once(self, tokens: int) -> int:
        return 3 * (-(-tokens // self.parts)) ** 2 + 8 * tokens

    def needs(self) -> tuple[Observation, ...]:
        return (EncoderAttention(),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        attention = view.observe(EncoderAttention())
        cuts = torch.tensor_split(torch.arange(view.token_count, device="cpu"), min(self.parts, view.token_count))
        slices = [slice(int(cut[0]), int(cut[-1]) + 1) for cut in cuts if len(cut)]
        uneven = torch.cat([_unevenness(view.features[:, own]) for own in slices], 1)
        balance = attention.mean(1, keepdim=True) / uneven.mean(1, keepdim=True).clamp(min=1e-30)
        score = attention + self.context * uneven * balance
        weight = torch.stack([score[:, own].mean(1) for own in slices], 1)
        share = weight / weight.sum(1, keepdim=True).clamp(min=1e-30)
        quota = (share * keep + 1e-6).floor()  # [G, parts]
        turn = _ranks(weight)  # the part with the most to tell gets the first of what is left over
        priority = []
        for number, own in enumerate(slices):
            beyond = _ranks(attention[:, own]) - quota[:, number, None]
            priority.append(torch.where(beyond < 0, -1, beyond * len(slices) + turn[:, number, None]))
        return Selection(torch.cat(priority, 1).argsort(dim=1, stable=True)[:, :keep].sort(1).values)


def _unevenness(features: Tensor) -> Tensor:
    """[G, n] fp32: the variance of each token's cosines to the others of its part."""
    import torch

    points = unit_rows(features)
    count = points.shape[1]
    if count < 2:
        return points.new_zeros(points.shape[:2])
    rows = []
    for own in points:
        table = own @ own.T
        table.fill_diagonal_(0.0)
        mean = table.sum(1) / (count - 1)
        rows.append((table.square().sum(1) / (count - 1) - mean.square()).clamp(min=0))
    return torch.stack(rows)


def _ranks(score: Tensor) -> Tensor:
    """[G, n] long: place of each score, 0 for the largest; of equal ones the earlier comes first."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
