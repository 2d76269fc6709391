"""iLLaVA v2: keep the important tokens, and let a few of those that follow recycle what is removed.

Wang et al., ICLR 2026, arXiv:2412.06263, from the paper and the observed behaviour of the authors' program, all three modes.
Differs: importance is attention (their program takes the log-sum-exp of the logits); similarities are computed in fp32 and in
pieces; every image and batch row is handled on its own. Half a token rounds up by default, in their program to even
(`rounding=half_even`, as the published preset has it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import Importance, Observation, TokenView
from foveate.errors import SpecError
from foveate.methods._query import check_query
from foveate.ops.merging import removed_indices, take_rows

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class IllavaV2(TokenMethod):
    """The most important tokens stay as they are; a share of recycling tokens each absorb the most similar removed ones.

    A recycling token x becomes (1 - absorb) x + absorb * sum(a_m x_m) over its `partners` most similar removed tokens x_m, with
    a = softmax(x . x_m / sqrt(D)). A removed token may feed several recycling tokens, or none, so sizes do not add up.

    Attributes:
        mode: 3 as above; 1 drops the least important tokens; 2 ("shift-merge") looks at no score: again and again the last
            token of the sequence and the one before it become their mean, until `keep` are left. So mode 2 cuts the end of the
            sequence off, and the last token that stays holds half of itself and a fading trace of what followed.
        recycle: share of the kept tokens that recycle, at least one token.
        partners: how many removed tokens each of them absorbs.
        absorb: how much of a recycling token is replaced.
        query: whose attention counts in the decoder, as for fastv.
    """

    mode: int = 3
    recycle: float = 0.05
    partners: int = 5
    absorb: float = 0.5
    query: str = "last"

    sites = (SiteKind.VISION_LAYER, SiteKind.LLM_LAYER)
    merges = True
    paper = "arXiv 2412.06263 (ICLR 2026)"

    def __post_init__(self) -> None:
        check_query("illava_v2", self.query)
        if self.mode not in (1, 2, 3):
            raise SpecError(f"illava_v2(mode={self.mode}): 1 drops, 2 shifts and merges, 3 recycles")
        if self.mode != 3 and (self.recycle, self.partners, self.absorb) != (0.05, 5, 0.5):
            raise SpecError(f"illava_v2(mode={self.mode}): recycle, partners and absorb are options of mode=3")
        if self.mode == 2 and self.query != "last":
            raise SpecError("illava_v2(mode=2) looks at no attention: leave query out")
        if not 0 < self.recycle <= 1:
            raise SpecError(f"illava_v2(recycle={self.recycle:g}): a share above 0 and up to 1, e.g. recycle=0.05")
        if self.partners < 1:
            raise SpecError(f"illava_v2(partners={self.partners}): a recycling token absorbs at least one token")
        if not 0 < self.absorb < 1:
            raise SpecError(f"illava_v2(absorb={self.absorb:g}): between 0 and 1, e.g. absorb=0.5")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (
            cls(),
            cls(recycle=1.0, partners=1, query="text"),
            cls(recycle=0.3, absorb=0.9, query="window:4"),
            cls(mode=1),
            cls(mode=2),
        )

    def pairs_at_once(self, tokens: int) -> int:
        # Recycling tokens x removed tokens, in one piece: a share of K (N - K), which half of the tokens make largest.
        most = max(self.recycling_of(keep) * (tokens - keep) for keep in range(1, tokens + 1))
        return most if self.mode == 3 else 0

    def needs(self) -> tuple[Observation, ...]:
        return () if self.mode == 2 else (Importance(self.query),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        if self.mode == 2:
            return _shifted(view, keep)
        count = view.token_count
        order = torch.argsort(view.observe(self.needs()[0]), dim=1, descending=True, stable=True)
        kept = order[:, :keep].sort(1).values
        if keep == count or self.mode == 1:
            return Selection(kept)
        recycling = order[:, keep - self.recycling_of(keep) : keep]
        removed = removed_indices(kept, count)
        partner, share = self._partners(view.features, recycling, removed)  # [G, C, M]
        groups, wide = partner.shape[0], partner.shape[1] * partner.shape[2]
        own = torch.ones(groups, count, dtype=torch.float32, device=kept.device).scatter(1, recycling, 1 - self.absorb)
        return Selection(
            kept,
            source=partner.reshape(groups, wide),
            target=recycling[..., None].expand_as(partner).reshape(groups, wide),
            weight=(self.absorb * share).reshape(groups, wide),
            self_weight=own.gather(1, kept),
            conserving=False,
        )

    def recycling_of(self, keep: int) -> int:
        """How many of `keep` tokens recycle."""
        return max(1, round(self.recycle * keep))

    def _partners(self, features: Tensor, recycling: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar removed tokens [G, C, M] of each recycling token, and their shares, which sum to 1."""
        width = features.shape[-1]
        wide = take_rows(features, recycling).float()
        similarity = wide @ take_rows(features, removed).float().transpose(1, 2)  # [G, C, R], C is a twentieth of K
        best = similarity.topk(min(self.partners, removed.shape[1]), dim=-1)
        partner = removed[:, None].expand(-1, recycling.shape[1], -1).gather(2, best.indices)
        return partner, (best.values / width**0.5).softmax(-1)


def _shifted(view: TokenView, keep: int) -> Selection:
    """Mode 2: the last token that stays is 1/2 itself, 1/4 the next one, 1/8, ...; the last two of the chain weigh the same."""
    import torch

    groups, count, device = view.group_count, view.token_count, view.features.device
    places = torch.arange(count, device=device).expand(groups, -1)
    if keep == count:
        return Selection(places)
    chain = 0.5 ** torch.arange(1, count - keep + 2, dtype=torch.float32, device=device)
    chain[-1] = chain[-2]
    own = torch.ones(groups, keep, device=device, dtype=torch.float32)
    own[:, -1] = chain[0]
    return Selection(
        places[:, :keep],
        source=places[:, keep:],
        target=torch.full_like(places[:, keep:], keep - 1),
        weight=chain[1:].expand(groups, -1).contiguous(),
        self_weight=own,
    )
