"""iLLaVA v1: fold the least important tokens into one.

Wang et al., arXiv:2412.06263v1 (January 2025), from the paper and the observed behaviour of the authors' program.
Differs: every image and batch row is scored on its own; importance is attention everywhere (their Qwen2-VL program takes the
log-sum-exp of the logits instead); sums run in fp32.
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
from foveate.ops.merging import removed_indices

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

RAMPS = ("least", "most", "even")


@dataclass(frozen=True)
class IllavaV1(TokenMethod):
    """Remove the r least important tokens; the next one up, the host, becomes a weighted mean of itself and them.

    With the r + 1 tokens in ascending importance the weights are r + 1, r, ..., 1: the least important one weighs most and
    the host least, as published. So this is close to dropping r + 1 tokens and adding one mean of them.

    Attributes:
        query: whose attention counts in the decoder, as for fastv; the encoder averages over all its tokens.
        ramp: which of the r + 1 tokens weighs most: "least" the least important one (published), "most" the most important
            one (weights 1, 2, ..., r + 1), "even" none.
    """

    query: str = "last"
    ramp: str = "least"

    sites = (SiteKind.VISION_LAYER, SiteKind.LLM_LAYER)
    merges = True
    paper = "arXiv 2412.06263v1"

    def __post_init__(self) -> None:
        check_query("illava_v1", self.query)
        if self.ramp not in RAMPS:
            raise SpecError(f"illava_v1(ramp={self.ramp}): {', '.join(RAMPS)} are known")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(ramp="most"), cls(ramp="even", query="all")

    def needs(self) -> tuple[Observation, ...]:
        return (Importance(self.query),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        count = view.token_count
        removing = count - keep
        order = torch.argsort(view.observe(self.needs()[0]), dim=1, stable=True)  # ascending importance
        folded = order[:, :removing]
        kept = removed_indices(folded.sort(1).values, count)
        if removing == 0:
            return Selection(kept)
        host = order[:, removing : removing + 1]
        weights = self._weights(removing + 1, order.device)
        own = torch.where(kept == host, weights[-1], 1.0)
        return Selection(
            kept,
            source=folded,
            target=host.expand_as(folded).contiguous(),
            weight=weights[:-1].expand_as(folded).contiguous(),
            self_weight=own,
        )

    def _weights(self, count: int, device: torch.device) -> torch.Tensor:
        """[count] shares of tokens in ascending importance."""
        import torch

        rising = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        weights = {"least": rising.flip(0), "most": rising, "even": torch.ones_like(rising)}[self.ramp]
        return weights / weights.sum()
