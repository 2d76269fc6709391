"""HiPrune: what middle encoder layers look at and its neighbours, then what the last layers look at.

Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention", arXiv:2508.00553. Written from the paper's
mathematics.
Differs: each image, crop or frame is chosen from on its own; where a border leaves fewer neighbours, the last layer fills up.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import EncoderAttention, Observation, TokenView
from foveate.errors import SpecError

# More than any grid is wide: places beside each other differ by one, those above each other by this.
_LINE = 2**20


@dataclass(frozen=True)
class HiPrune(TokenMethod):
    """Anchors by a middle layer's attention with the four tokens beside them, registers by the last layer's.

    Attributes:
        alpha: share of the kept tokens that are anchors and their neighbours.
        depth: where the middle layer is, as a share of the encoder's: .375 is layer 9 of CLIP's 24; the authors take .5 for
            Qwen2.5-VL.
    """

    alpha: float = 0.1
    depth: float = 0.375

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2508.00553"
    published = (
        "87.8 and 72.2 % of full on 11 tasks at 25 and 10 % of the tokens, DocVQA 73.5 and 39.9 of 94.9 "
        "(Qwen2.5-VL-7B; Tencent AngelSlim)"
    )

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 < self.depth <= 1):
            raise SpecError("hiprune: alpha is a share from 0 to 1, depth a share of the encoder's layers above 0")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(alpha=0.8, depth=0.5)

    def pairs_at_once(self, tokens: int) -> int:
        return self.anchors(tokens) * tokens

    def anchors(self, keep: int) -> int:
        """How many of the kept tokens are anchors; each has four neighbours."""
        return int(self.alpha * keep / 5 + 1e-9)

    def needs(self) -> tuple[Observation, ...]:
        return EncoderAttention(self.depth, "all"), EncoderAttention(1.0, "all")

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        middle, last = (view.observe(need) for need in self.needs())
        anchors = top_indices(middle, self.anchors(keep))
        t, y, x = view.coords.unbind(2)
        place = (t * _LINE + y) * _LINE + x
        at, near = place.gather(1, anchors), torch.zeros(last.shape, dtype=torch.bool, device=last.device)
        for step in (0, 1, -1, _LINE, -_LINE):
            near = near | (place[:, None] == at[:, :, None] + step).any(1)
        return Selection(top_indices(last.masked_fill(near, torch.inf), keep))
