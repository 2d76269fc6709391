"""Everything that decides a training of a selector in front of the language model.

Shaped after VisionSelector, arXiv:2510.16598: the model is frozen, its own loss teaches the scorer through a soft top-k that
becomes hard, at a budget drawn anew for every pass. The numbers are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.budget import Budget
from foveate.core.plan import Stage
from foveate.core.site import Site
from foveate.errors import InputError
from foveate.methods.selector import Selector
from foveate.predictors import QUESTION_SELECTOR, SELECTOR
from foveate.train.settings import PREDICTORS, TrainingConfig

if TYPE_CHECKING:
    from foveate.engine.soft import SoftMode


@dataclass(frozen=True)
class SelectorConfig(TrainingConfig):
    """A training of a selector; what is not here is as of `TrainingConfig`, where `keep` is that of validation.

    Attributes:
        query: what the scorer sees: "none" the picture alone, "text" the question too.
        least_keep, most_keep: between these the budget of each pass is drawn, on a logarithmic scale.
        straight: share of the steps, the last ones, in which tokens are kept or not and the gradient alone is soft.
    """

    mode: str = PREDICTORS
    tau_end: float = 0.1
    width: int = 256
    feedforward: int = 1024
    blocks: int = 1
    query: str = "none"
    least_keep: float = 0.05
    most_keep: float = 0.6
    straight: float = 0.3

    name = "selector"
    paper = "arXiv 2510.16598"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("query", ("none", "text"))
        if self.least_keep > self.most_keep:
            raise InputError(f"--least-keep {self.least_keep} is more than --most-keep {self.most_keep}")

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(Site.pre_llm(), Selector(query=self.query), Budget.of_ratio(self.keep)),)

    def described(self) -> dict[str, Any]:
        scorer = QUESTION_SELECTOR if self.query == "text" else SELECTOR
        return {"layer": 0, "text_keep": None, "image": False, "selectors": (scorer,)}

    def spec(self, out: Path) -> str:
        query = "" if self.query == "none" else f", query={self.query}"
        return f"selector(site=pre_llm, keep={self.keep}{query}, path='{out}')"

    def prepare(self, soft: SoftMode) -> None:
        soft.budgets = self.least_keep, self.most_keep

    def at_step(self, soft: SoftMode, step: int, steps: int) -> None:
        super().at_step(soft, step, steps)
        soft.straight = step >= (1 - self.straight) * steps
