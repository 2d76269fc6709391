"""Dynamic-LLaVA, language context in decoding: a trained predictor says which tokens of the answer are stored.

Huang et al., ICLR 2025, arXiv:2412.00876, Sec. 3.2, Eq. 5 and 6. Written from the paper.
Differs from the authors' code: exact in ragged batches, for beams and for prompts on a cache; also on text-only chats.
Without a cache their code keeps as many tokens as the predictor would, but chooses them by the raw logit of keeping, so its
answers with and without a cache differ; here a token stays where its logit of keeping is the larger one, in both.
The paper's rule is the default: a token that is not stored is seen by itself alone. `recent=N` keeps a window beside it, which
the predictor was not trained with: the last N tokens are seen whatever it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.learned import BaseModel, LearnedMethod
from foveate.core.method import Method, StepMethod
from foveate.core.view import StepView
from foveate.predictors import TEXT, load_predictor, read_config

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class DynamicText(StepMethod, LearnedMethod):
    """Store the tokens of the answer that a trained predictor keeps.

    Attributes:
        recent: the last so many tokens are visible whatever the predictor says; none unless told otherwise, as it was trained
            (Eq. 6).
        path: folder or hub id of the predictors.
        bias: added to the logit of keeping; more than 0 stores more than was trained.
        allow_mismatch: also on another model than the one they were trained for.
    """

    recent: int = 0
    path: str = ""
    bias: float = 0.0
    allow_mismatch: bool = False

    takes_keep = False
    paper = "arXiv 2412.00876"

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (*super().examples(), cls(bias=0.1))

    def build(self, base: BaseModel) -> nn.Module:
        return load_predictor(self.path, TEXT, base, self.allow_mismatch)

    def share(self, keep: float | None) -> float:
        """As trained; what an answer really stores is its own affair."""
        return read_config(self.path).text_keep or 1.0

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        logits: Tensor = view.module(view.features).float()  # [B, n, 2]
        return logits[..., 0] + self.bias > logits[..., 1]
