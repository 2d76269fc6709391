"""V2Drop: the visual tokens that a layer of the language model moves most stay; lazy ones go.

"Variation-aware Vision Token Dropping for Faster Large Vision-Language Models", arXiv:2509.01552. Written from the paper's
mathematics.
Differs: layers and budgets are those of the stage; the authors' schedule is a preset of `staged`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import Change, Observation, TokenView

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class V2Drop(ScoreMethod):
    """Keep the tokens whose hidden state changed most in the layer below the cut (Euclidean). No attention is looked at."""

    sites = (SiteKind.LLM_LAYER,)
    paper = "arXiv 2509.01552"

    def needs(self) -> tuple[Observation, ...]:
        return (Change(),)

    def score(self, view: TokenView) -> Tensor:
        return view.observe(Change())
