"""Everything that decides a training of Dynamic-LLaVA's predictors, with the paper's numbers as defaults.

Huang et al., ICLR 2025, arXiv:2412.00876, Sec. 4.1 and App. A.4, and the authors' published command lines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import methods
from foveate.core.budget import Budget, Rounding
from foveate.core.plan import Stage
from foveate.core.site import Site, SiteKind
from foveate.train.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.engine.soft import SoftMode


@dataclass(frozen=True)
class DynamicLlavaConfig(TrainingConfig):
    """A training of Dynamic-LLaVA; what is not here is as of `TrainingConfig`.

    Attributes:
        layer: the decoder layer in front of which tokens are judged.
        text_keep: share of an answer's tokens that stays (r_OT; `keep` is r_I); None trains no predictor for answers.
        least_answer: shorter answers are kept whole while training (LEN).
        penalty_weight: of the distance of the shares from their targets (lambda).
        calibrate: held-out rows (rows of the training where there are none) on which margins are shifted afterwards, until
            finished decisions keep the shares; 0 leaves them as trained.
    """

    layer: int = 2
    text_keep: float | None = 0.5
    least_answer: int = 50
    penalty_weight: float = 100.0
    calibrate: int = 256

    name = "dynamic-llava"
    paper = "arXiv 2412.00876"

    def stages(self) -> tuple[Stage, ...]:
        image = Stage(Site.llm_layer(self.layer), methods.get("dynamic_image")(), Budget.of_ratio(self.keep, Rounding.FLOOR))
        text = Stage(Site(SiteKind.DECODE, self.layer), methods.get("dynamic_text")())
        return (image,) if self.text_keep is None else (image, text)

    def described(self) -> dict[str, Any]:
        return {"layer": self.layer, "text_keep": self.text_keep}

    def spec(self, out: Path) -> str:
        return f"dynamic_llava(path='{out}'{'' if self.text_keep is not None else ', text=off'})"

    def prepare(self, soft: SoftMode) -> None:
        soft.least_answer, soft.text_keep = self.least_answer, self.text_keep or 1.0

    def penalty(self, soft: SoftMode) -> Tensor:
        return soft.penalty(self.keep, self.text_keep or 1.0)

    @property
    def penalty_factor(self) -> float:
        return self.penalty_weight

    def smoke(self) -> DynamicLlavaConfig:
        sizes = {"least_answer": min(self.least_answer, 4), "calibrate": min(self.calibrate, 4)}
        return replace(super().smoke(), **sizes)  # type: ignore[arg-type]
