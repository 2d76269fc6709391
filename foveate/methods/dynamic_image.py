"""Dynamic-LLaVA, vision context in prefill: a trained predictor says which visual tokens stay.

Huang et al., ICLR 2025, arXiv:2412.00876, Sec. 3.2. Written from the paper.
Differs from the authors' code: each image, crop or frame is judged on its own, in ragged batches and any number of images;
`keep=threshold:0.5` is the paper's Eq. 5, where the count follows the picture, which their code has in training only. Their
count is cut off (`rounding=floor`, the default of the recipe dynamic_llava); a stage written by hand rounds half up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.learned import BaseModel, LearnedMethod
from foveate.core.method import ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.predictors import IMAGE, described_predictor, load_predictor, predictor_flops

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class DynamicImage(ScoreMethod, LearnedMethod):
    """Keep the visual tokens that a trained predictor rates highest.

    Attributes:
        path: folder or hub id of the predictors.
        allow_mismatch: also on another model than the one they were trained for.
    """

    path: str = ""
    allow_mismatch: bool = False

    sites = (SiteKind.LLM_LAYER,)
    thresholds = True
    paper = "arXiv 2412.00876"

    def build(self, base: BaseModel) -> nn.Module:
        return load_predictor(self.path, IMAGE, base, self.allow_mismatch)

    def judging_flops(self, tokens: int) -> int:
        return predictor_flops(described_predictor(self.path, IMAGE), tokens)

    def score(self, view: TokenView) -> Tensor:
        logits: Tensor = view.module(view.features)  # [G, N, 2]
        return logits.float().softmax(-1)[..., 0]
