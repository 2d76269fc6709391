"""Selector: a small trained scorer in front of the language model says which visual tokens it reads.

Shaped after VisionSelector, arXiv:2510.16598: a scorer apart from the model, trained through the frozen model's own loss by a
differentiable top-k at every budget. Written from the paper's description; the authors publish their code without a licence.
Differs: each image, crop or frame is scored on its own, in ragged batches and any number of images; the scorer's attention
works in few channels; `query=text` lets it see the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.learned import BaseModel, LearnedMethod
from foveate.core.method import Method, ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import Observation, Question, TokenView
from foveate.errors import SpecError
from foveate.predictors import QUESTION_SELECTOR, SELECTOR, described_predictor, load_predictor, scorer_flops

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Selector(ScoreMethod, LearnedMethod):
    """Keep the visual tokens that a trained scorer rates highest, before the language model reads any.

    A smaller budget keeps some of what a larger one keeps: one training serves every budget.

    Attributes:
        query: "none" scores the picture alone, so that a picture is scored once for all questions; "text" scores it for the
            instruction after the last image. Each is a scorer of its own in the folder.
        path: folder or hub id of the trained scorer.
        allow_mismatch: also on another model than the one it was trained for.
    """

    query: str = "none"
    path: str = ""
    allow_mismatch: bool = False

    sites = (SiteKind.PRE_LLM,)
    paper = "arXiv 2510.16598"

    def __post_init__(self) -> None:
        if self.query not in ("none", "text"):
            raise SpecError(f"selector(query={self.query}): allowed are none and text")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (*super().examples(), cls(query="text"))

    @property
    def scorer(self) -> str:
        """Name of the scorer in the folder."""
        return QUESTION_SELECTOR if self.query == "text" else SELECTOR

    def build(self, base: BaseModel) -> nn.Module:
        return load_predictor(self.path, self.scorer, base, self.allow_mismatch)

    def judging_flops(self, tokens: int) -> int:
        return scorer_flops(described_predictor(self.path, self.scorer), tokens)

    def needs(self) -> tuple[Observation, ...]:
        return (Question(),) if self.query == "text" else ()

    def score(self, view: TokenView) -> Tensor:
        asked = [view.observe(need).to(view.features.dtype) for need in self.needs()]  # [G, D]
        return view.module(view.features, *asked)[..., 0].float()  # [G, N]
