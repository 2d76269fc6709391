"""iLLaVA v1: fold the least important tokens into one.

Wang et al., arXiv:2412.06263v1 (January 2025), from the paper and the observed behaviour of the authors' program.
Differs: every image and batch row is scored on its own; importance is attention everywhere (their Qwen2-VL program takes the
log-sum-exp of the logits instead); sums run in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import Importance, Observation, TokenView
from foveate.methods._query import check_query
from foveate.ops.merging import removed_indices


@dataclass(frozen=True)
class IllavaV1(TokenMethod):
    """Remove the r least important tokens; the next one up, the host, becomes a weighted mean of itself and them.

    With the r + 1 tokens in ascending importance the weights are r + 1, r, ..., 1: the least important one weighs most and
    the host least, as published. So this is close to dropping r + 1 tokens and adding one mean of them.

    Attributes:
        query: whose attention counts in the decoder, as for fastv; the encoder averages over all its tokens.
    """

    query: str = "last"

    sites = (SiteKind.VISION_LAYER, SiteKind.LLM_LAYER)
    paper = "arXiv 2412.06263v1"

    def __post_init__(self) -> None:
        check_query("illava_v1", self.query)

    def needs(self) -> tuple[Observation, ...]:
        return (Importance(self.query),)

    def select(self, view: TokenView, keep: int) -> Selection:
        count = view.token_count
        removing = count - keep
        order = torch.argsort(view.observe(self.needs()[0]), dim=1, stable=True)  # ascending importance
        folded = order[:, :removing]
        kept = removed_indices(folded.sort(1).values, count)
        if removing == 0:
            return Selection(kept)
        host = order[:, removing : removing + 1]
        weights = torch.arange(removing + 1, 0, -1, dtype=torch.float32, device=order.device)
        weights = weights / weights.sum()
        own = torch.where(kept == host, weights[-1], 1.0)
        return Selection(
            kept,
            source=folded,
            target=host.expand_as(folded).contiguous(),
            weight=weights[:-1].expand_as(folded).contiguous(),
            self_weight=own,
        )
