"""DART: a few pivots with large keys, and of all other tokens those that repeat a pivot least.

Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP 2025,
arXiv:2502.11494. Written from the paper's mathematics.
Differs: exactly the stage's count stays; keys are those of the layer below the cut, before their rotation, so that a row is the
same alone and padded; a prompt's first token is no pivot; each image has pivots of its own. No attention map is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import KeyNorms, Observation, TextPivots, TokenView
from foveate.errors import SpecError
from foveate.ops.greedy import unit_rows


@dataclass(frozen=True)
class Dart(TokenMethod):
    """Visual pivots stay; each pivot in turn, those of the text last, adds the tokens with the lowest cosine to it.

    Attributes:
        image: visual pivots, those with the largest keys (sum of absolute values).
        text: pivots among the tokens of the text.
    """

    image: int = 4
    text: int = 4

    sites = (SiteKind.LLM_LAYER,)
    paper = "arXiv 2502.11494"
    published = (
        "85.7 and 69.8 % of full on 11 tasks at 25 and 10 % of the tokens, DocVQA 78.9 and 49.9 of 94.9 "
        "(Qwen2.5-VL-7B; Tencent AngelSlim)"
    )

    def __post_init__(self) -> None:
        if self.image < 1 or self.text < 0 or max(self.image, self.text) > 1024:
            raise SpecError("dart: image is 1 to 1024 pivots, text 0 to 1024")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(image=2, text=0), cls(image=1, text=3)

    def needs(self) -> tuple[Observation, ...]:
        return (KeyNorms(), TextPivots(self.text)) if self.text else (KeyNorms(),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        visual = min(self.image, keep)
        by_size = view.observe(KeyNorms()).argsort(dim=1, descending=True, stable=True)
        chosen = by_size[:, :visual]
        points = unit_rows(view.features)
        pivots = points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2]))
        if self.text:
            words = unit_rows(view.observe(TextPivots(self.text)))
            # A prompt with fewer words asks its largest visual pivot again.
            pivots = torch.cat([pivots, torch.where(words.any(2, keepdim=True), words, pivots[:, :1])], 1)
        likeness = points @ pivots.transpose(1, 2)  # [G, N, pivots]
        taken = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device).scatter(1, chosen, True)
        count, left = visual, keep - visual
        each = -(-left // pivots.shape[1])
        for pivot in range(pivots.shape[1]):
            adding = min(each, keep - count)
            new = top_indices((-likeness[..., pivot]).masked_fill(taken, -torch.inf), adding)
            taken, count = taken.scatter(1, new, True), count + adding
        return Selection((~taken).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep])
