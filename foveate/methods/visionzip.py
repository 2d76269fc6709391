"""VisionZip: the tokens that the encoder looks at most, and a few that gather what is left.

Yang et al., CVPR 2025, arXiv:2412.04467, Sec. 3. Written from the paper's mathematics.
Differs: tokens merge behind the projector, as the language model reads them (the authors: encoder states, in front of it), so
that every family is served; each image, crop or frame is chosen from on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import EncoderAttention, EncoderKeys, Observation, TokenView
from foveate.errors import SpecError
from foveate.ops.merging import nearest, pairs_of_nearest, removed_indices, take_rows


@dataclass(frozen=True)
class VisionZip(TokenMethod):
    """Dominant tokens stay by encoder attention; evenly spaced contextual ones take in all others that have similar keys.

    A contextual token becomes itself plus the mean of those that joined it.

    Attributes:
        contextual: share of the kept tokens that are contextual: 10 of 64, 20 of 128, 30 of 192 as published.
    """

    contextual: float = 0.15625

    sites = (SiteKind.PRE_LLM,)
    merges = True
    sums = True
    paper = "arXiv 2412.04467"
    published = (
        "87.6 and 71.8 % of full on 11 tasks at 25 and 10 % of the tokens, DocVQA 71.5 and 37.9 of 94.9 "
        "(Qwen2.5-VL-7B; Tencent AngelSlim)"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.contextual < 1:
            raise SpecError(f"visionzip(contextual={self.contextual}): a share from 0 to below 1")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(contextual=0.5)

    def pairs_at_once(self, tokens: int) -> int:
        return min(pairs_of_nearest(tokens), int(self.contextual * tokens**2 / 4) + tokens)

    def needs(self) -> tuple[Observation, ...]:
        return EncoderAttention(), EncoderKeys()

    def targets(self, keep: int) -> int:
        """How many of the kept tokens are contextual."""
        return int(keep * self.contextual + 0.5)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        count, gathering = view.token_count, self.targets(keep)
        dominant = top_indices(view.observe(EncoderAttention()), keep - gathering)
        if keep == count or not gathering:
            return Selection(top_indices(view.observe(EncoderAttention()), keep))
        rest = removed_indices(dominant, count)
        places = torch.arange(gathering, device=rest.device) * (rest.shape[1] // gathering)
        target = rest[:, places]
        kept = torch.cat([dominant, target], 1).sort(1).values
        source = removed_indices(kept, count)
        keys = view.observe(EncoderKeys())
        _, slot = nearest(take_rows(keys, source), take_rows(keys, target))
        host = target.gather(1, slot)
        joined = torch.zeros_like(view.sizes).scatter_add(1, host, torch.ones_like(host, dtype=torch.float32))
        own = torch.ones_like(kept, dtype=torch.float32)
        return Selection(kept, source=source, target=host, weight=1 / joined.gather(1, host), self_weight=own)
