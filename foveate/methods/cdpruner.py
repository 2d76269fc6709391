"""CDPruner: tokens that are relevant to the question and different from each other, by a determinantal point process.

Zhang et al., NeurIPS 2025, arXiv:2506.10967. Written from the paper's mathematics.
Differs: relevance is the mean cosine of a visual token, as the language model reads it, to the embeddings of the question's
tokens, in every family (the authors: CLIP's own text encoder, for CLIP); it is normalised within each image (the authors'
program: over the whole batch, so that rows change each other); the question is the text behind the last image, of each sample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import Observation, QuestionTokens, TokenView
from foveate.errors import SpecError
from foveate.ops.greedy import determinantal, unit_rows
from foveate.ops.splitting import check_split, in_parts

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

_THETA = re.compile(r"theta:(0|0?\.[0-9]{1,6})")


@dataclass(frozen=True)
class CDPruner(TokenMethod):
    """Keep the tokens whose kernel has the largest determinant, found greedily: relevant ones grow it, similar ones shrink it.

    Attributes:
        weight: how relevance r (0 to 1) enters: "linear" as r, or "theta:t" as exp(t r / (2 - 2 t)), 0 <= t < 1, where
            theta:0 looks at diversity alone.
        split: choose within every `split`-th token at a time: about as many times faster.
    """

    weight: str = "linear"
    split: int = 1

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2506.10967"
    published = "98.5, 97.6 and 95.7 % of full at 192, 128 and 64 of 576 tokens (LLaVA-1.5-7B, 9 benchmarks; the FSR paper)"

    def __post_init__(self) -> None:
        check_split("cdpruner", self.split)
        if self.weight != "linear" and not _THETA.fullmatch(self.weight):
            raise SpecError(f"cdpruner(weight={self.weight}): allowed are linear and theta:t with 0 <= t < 1, e.g. theta:.8")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(weight="theta:.8", split=2)

    def pairs_at_once(self, tokens: int) -> int:
        return 2 * tokens**2  # a factor with a row for each kept token, and what is copied of it

    def needs(self) -> tuple[Observation, ...]:
        return (QuestionTokens(),)

    def select(self, view: TokenView, keep: int) -> Selection:
        points = unit_rows(view.features)
        quality = self._quality(relevance(points, view.observe(QuestionTokens())))

        def distinct(tokens: Tensor, share: int) -> Tensor:
            return determinantal(points[:, tokens], quality[:, tokens], share)

        return Selection(in_parts(points, keep, self.split, distinct))

    def _quality(self, relevance: Tensor) -> Tensor:
        least, most = relevance.aminmax(dim=1, keepdim=True)
        scaled = (relevance - least + 1e-6) / (most - least + 1e-6)
        if self.weight == "linear":
            return scaled
        theta = float(self.weight.partition(":")[2])
        return (theta / (2 * (1 - theta)) * scaled).exp()


def relevance(points: Tensor, question: Tensor) -> Tensor:
    """[G, N] fp32: the mean cosine of unit vectors [G, N, D] to a question's tokens [G, M, D]; rows of zeros are none."""
    words = unit_rows(question)
    count = question.any(2).sum(1, keepdim=True).clamp(min=1)
    return (points @ words.sum(1)[..., None])[..., 0] / count
