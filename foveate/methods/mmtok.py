"""MMTok: the tokens that together cover the question's words and the whole picture best.

Dong et al., ICLR 2026, arXiv:2508.18264 (multimodal maximum coverage). Written from the paper's mathematics.
Differs: both coverages compare visual tokens as the language model reads them (the authors: encoder states for the picture's);
gains are computed lazily; each image is chosen from on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import Observation, QuestionTokens, TokenView
from foveate.errors import SpecError
from foveate.ops.greedy import coverage, unit_rows
from foveate.ops.splitting import check_split, in_parts

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class MMTok(TokenMethod):
    """Choose greedily by how much better the question's tokens and all visual tokens are covered.

    It holds a number for every two tokens of an image, one image at a time: 32 MiB for 2,880.

    Attributes:
        text, image: temperatures of the softmax over visual tokens, for words and for visual tokens.
        picture: how much covering the picture counts beside covering the question.
        split: choose within every `split`-th token at a time: about as many times faster.
    """

    text: float = 0.01
    image: float = 0.2
    picture: float = 0.5
    split: int = 1

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2508.18264"

    def __post_init__(self) -> None:
        check_split("mmtok", self.split)
        if not (self.text > 0 and self.image > 0 and self.picture >= 0):
            raise SpecError("mmtok: text and image are temperatures above 0, picture is at least 0")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(text=0.05, image=0.5, picture=1.0, split=2)

    def pairs_at_once(self, tokens: int) -> int:
        return 3 * tokens**2

    def needs(self) -> tuple[Observation, ...]:
        return (QuestionTokens(),)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        def covering(tokens: Tensor, share: int) -> Tensor:
            chosen = []
            for features, question in zip(view.features[:, tokens], view.observe(QuestionTokens()), strict=True):
                points, asked = unit_rows(features), question.any(1)
                by_word = (unit_rows(question) @ points.T / self.text).softmax(1) * asked[:, None] / asked.sum().clamp(min=1)
                by_token = (points @ points.T / self.image).softmax(1).mul_(self.picture / len(points))
                table = torch.cat([by_word, by_token]).T.contiguous()  # [N, M + N]
                chosen.append(coverage(table[None], torch.ones_like(table[None, :, 0]), share))
            return torch.cat(chosen)

        return Selection(in_parts(view.features, keep, self.split, covering))
