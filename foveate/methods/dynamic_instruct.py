"""Dynamic-LLaVA, language context in prefill: a trained predictor says which tokens of the instruction stay.

Huang et al., ICLR 2025, arXiv:2412.00876, Tab. 9: it costs accuracy, so the authors' scripts leave it off. From the paper.
Differs from the authors' code: the instruction is the text after a row's last medium, found in the prompt and not by the ids
of one tokenizer; batches of any size. The prompt's last token always stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.layout import Role
from foveate.core.learned import BaseModel, LearnedMethod
from foveate.core.method import ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.predictors import INSTRUCT, load_predictor

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class DynamicInstruct(ScoreMethod, LearnedMethod):
    """Keep the tokens of the instruction that a trained predictor keeps; each is judged by its own state.

    Attributes:
        path: folder or hub id of the predictors.
        allow_mismatch: also on another model than the one they were trained for.
    """

    path: str = ""
    allow_mismatch: bool = False

    sites = (SiteKind.LLM_LAYER,)
    roles = (Role.INSTRUCT,)
    thresholds = True
    paper = "arXiv 2412.00876"

    def build(self, base: BaseModel) -> nn.Module:
        return load_predictor(self.path, INSTRUCT, base, self.allow_mismatch)

    def score(self, view: TokenView) -> Tensor:
        logits: Tensor = view.module(view.features)  # [G, N, 2]
        return logits.float().softmax(-1)[..., 0]
