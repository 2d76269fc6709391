"""Dynamic-LLaVA, language context in prefill: a trained predictor says which tokens of the instruction stay.

Huang et al., ICLR 2025, arXiv:2412.00876, Tab. 9: it costs accuracy, so the authors' scripts leave it off. From the paper.
The instruction is that of the last turn, as in the authors' code: what follows the last marker of a user's turn, or what is new
in a turn on a cache; the text after a row's last medium where no marker is found. The prompt's last token always stays.
Differs from the authors' code: the marker's token ids belong to the predictors and not to the program; batches of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.layout import Role
from foveate.core.learned import BaseModel, LearnedMethod
from foveate.core.method import Method, ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import TokenView
from foveate.errors import SpecError
from foveate.predictors import INSTRUCT, load_predictor, read_config

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class DynamicInstruct(ScoreMethod, LearnedMethod):
    """Keep the tokens of the instruction that a trained predictor keeps; each is judged by its own state.

    Attributes:
        path: folder or hub id of the predictors.
        turn: token ids with which a user's turn begins behind an answer, as of "USER:"; () as `predictors.json` says.
        allow_mismatch: also on another model than the one they were trained for.
    """

    path: str = ""
    turn: tuple[int, ...] = ()
    allow_mismatch: bool = False

    sites = (SiteKind.LLM_LAYER,)
    roles = (Role.INSTRUCT,)
    thresholds = True
    paper = "arXiv 2412.00876"

    def __post_init__(self) -> None:
        if any(token < 0 for token in self.turn):
            raise SpecError("dynamic_instruct: token ids are never negative, write turn=[ids of the words before a question]")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (*super().examples(), cls(turn=(5, 7)))

    def turn_ids(self) -> tuple[int, ...]:
        return self.turn or read_config(self.path).turn

    def build(self, base: BaseModel) -> nn.Module:
        return load_predictor(self.path, INSTRUCT, base, self.allow_mismatch)

    def score(self, view: TokenView) -> Tensor:
        logits: Tensor = view.module(view.features)  # [G, N, 2]
        return logits.float().softmax(-1)[..., 0]
