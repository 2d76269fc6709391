"""Global and local: half of the tokens by what an early encoder layer looks at in each window, half by what the last one does.

The first stage of VScan (arXiv:2505.22654), written from the paper's mathematics.
Differs: tokens merge behind the projector, as the language model reads them; each image, crop or frame is chosen from alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import EncoderAttention, Observation, TokenView
from foveate.errors import SpecError
from foveate.ops.merging import pairs_of_nearest, to_nearest, weighted_mean
from foveate.ops.windows import window_top_indices


@dataclass(frozen=True)
class GlobalLocal(TokenMethod):
    """Tokens by early attention window by window, then by late attention; the others join the kept token most like them.

    Attributes:
        early: where the early layer is, as a share of the encoder's.
        window: side of a window in tokens.
        merge: False drops the others, as TRIO does.
    """

    early: float = 0.25
    window: int = 4
    merge: bool = True

    sites = (SiteKind.PRE_LLM,)
    merges = True
    paper = "arXiv 2505.22654"

    def __post_init__(self) -> None:
        if not 0 < self.early <= 1 or self.window < 1:
            raise SpecError("global_local: early is a share of the encoder's layers above 0, window at least 1 token")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(early=0.6, window=2), cls(merge=False)

    def pairs_at_once(self, tokens: int) -> int:
        return pairs_of_nearest(tokens) if self.merge else 0

    def needs(self) -> tuple[Observation, ...]:
        return EncoderAttention(), EncoderAttention(self.early)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        late, early = (view.observe(need) for need in self.needs())
        local = window_top_indices(early, view.coords, keep // 2, self.window)
        taken = torch.zeros_like(late, dtype=torch.bool).scatter(1, local, True)
        anywhere = top_indices(late.masked_fill(taken, -torch.inf), keep - keep // 2)
        kept = torch.cat([local, anywhere], 1).sort(1).values
        if keep == view.token_count or not self.merge:
            return Selection(kept)
        return weighted_mean(kept, to_nearest(kept, view.features), view.sizes)
