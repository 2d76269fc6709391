"""Dynamic-LLaVA: trained predictors sparsify the picture in prefill and the answer in decoding.

Huang et al., ICLR 2025, arXiv:2412.00876. The authors' program cuts the fraction off the number of a picture's tokens that stay
(`int(n * rate)`: 57, 172, 460 of 576 at .1, .3, .8), and so does this recipe; plain methods round half up.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from foveate import methods
from foveate.core.budget import Budget
from foveate.core.plan import Scope, Stage
from foveate.core.site import Site, SiteKind
from foveate.errors import InputError, SpecError
from foveate.predictors import read_config
from foveate.recipes import Recipe, rounded


@dataclass(frozen=True)
class DynamicLlava(Recipe):
    """`dynamic_llava(path=folder-or-hub-id)`, with the rates and the layer that the predictors were trained for.

    Attributes:
        path: folder or hub id of the predictors.
        keep: share or number of a picture's tokens that stays, or threshold:0.5 (the paper's Eq. 5); () as trained.
        rounding: what becomes of a fraction of a token: "floor" (the authors' program), "half_up", "half_even" or "ceil".
        image: whether the picture is sparsified.
        text: whether the answer is; needs predictors that were trained for it.
        instruct: whether the instruction is, by its own predictor; off in the authors' scripts, for it costs accuracy.
        turn: token ids with which a user's turn begins, for `instruct` (`dynamic_instruct`); () as the predictors say.
        scope: "crop" judges each crop of an image on its own, as trained on one crop.
        bias, recent, first: of the answer's gate (`dynamic_text`).
        allow_mismatch: also on another model than the one they were trained for.
    """

    path: str = ""
    keep: tuple[Budget, ...] = ()
    rounding: str = "floor"
    image: bool = True
    text: bool = True
    instruct: bool = False
    turn: tuple[int, ...] = ()
    scope: str = "medium"
    bias: float = 0.0
    recent: int = 0
    first: int = 0
    allow_mismatch: bool = False

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return (
            "dynamic_llava(path='{path}')",
            "dynamic_llava(path='{path}', keep=0.4, rounding=half_up, bias=0.1, recent=2, first=1)",
            "dynamic_llava(path='{path}', keep=threshold:0.5, text=off, scope=frame, allow_mismatch=on)",
            "dynamic_llava(path='{path}', image=off, instruct=on, turn=[5, 7])",
        )

    def expand(self) -> tuple[Stage, ...]:
        if not self.path:
            raise SpecError("dynamic_llava needs trained predictors: write path=folder or path=owner/name")
        if len(self.keep) > 1 or self.scope not in [scope.value for scope in Scope]:
            raise SpecError("dynamic_llava takes one keep, and scope=medium, crop, frame or sample")
        if not (self.image or self.text or self.instruct):
            raise SpecError("dynamic_llava(image=off, text=off) does nothing: leave it out")
        config = read_config(self.path)
        common: dict[str, Any] = {"path": self.path, "allow_mismatch": self.allow_mismatch}
        stages = []
        if self.image:
            if not config.image:
                raise InputError(f"{self.path} holds no predictor for pictures inside the model: write image=off")
            keep = self.keep or (Budget.of_ratio(Decimal(str(config.keep))),)
            (budget,) = rounded("dynamic_llava", keep, self.rounding)
            method = methods.get("dynamic_image")(**common)
            stages.append(Stage(Site.llm_layer(config.layer), method, budget, Scope(self.scope)))
        if self.instruct:
            if config.instruct_keep is None:
                raise InputError(f"{self.path} holds no predictor for instructions: leave instruct out")
            method = methods.get("dynamic_instruct")(**{**common, "turn": self.turn})
            stages.append(Stage(Site.llm_layer(config.layer), method, Budget(threshold=0.5)))
        if self.text:
            if config.text_keep is None:
                raise InputError(f"{self.path} holds no predictor for answers: write text=off")
            common |= {"bias": self.bias, "recent": self.recent, "first": self.first}
            gate = methods.get("dynamic_text")(**common)
            stages.append(Stage(Site(SiteKind.DECODE, config.layer), gate))
        return tuple(stages)
