"""EVS: of a video keep the first frame, and of each later one what changed since the frame before.

Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", arXiv:2510.14624.
Written from its mathematics.
Differs: visual tokens are compared and not pixels, as in the engines that ship it; exactly the stage's count stays, also where
that is less than a frame; behind another stage a token is compared with the latest earlier one that is left at its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.ops.frames import predecessors, turns

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Evs(TokenMethod):
    """The first frame stays, then the tokens least like the one at the same place a frame earlier, over the whole video.

    Dissimilarity is one minus the cosine; of equal tokens the earlier one stays. A still image has no frame before it: as of a
    first frame that is larger than the budget, evenly spread tokens of it stay, those of the control `uniform`. Crops of one
    image count as frames, and with `scope=sample` so do the media of a prompt.
    """

    paper = "arXiv 2510.14624"

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        earlier = predecessors(view.coords)  # [G, N]
        first = earlier == torch.arange(view.token_count, device=earlier.device)
        change = turns(view.features, earlier)
        # A cosine is never less than -1, so that no change is more than 2.
        return Selection(top_indices(torch.where(first & _spread(first, keep), 3.0, change), keep))


def _spread(marked: Tensor, keep: int) -> Tensor:
    """[G, N] bool: of the marked tokens the middle of each of `keep` equal stretches; all of them where they are fewer."""
    number, count = marked.cumsum(1), marked.sum(1, keepdim=True)  # of each marked token, from 1
    # How many middles floor((2i + 1) * count / (2 keep)) lie in front of the end of a token, and of its beginning.
    ends, begins = ((2 * keep * edge + count - 1) // (2 * count) for edge in (number, number - 1))
    return ends > begins
