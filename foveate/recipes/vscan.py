"""VScan: choose in front of the language model, then again in the middle of it. arXiv:2505.22654, written from the paper.

The shape of the best training-free systems at a tenth of the tokens: what the encoder finds goes in, what the question needs
goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate import methods
from foveate.core.budget import Budget
from foveate.core.plan import Stage
from foveate.core.site import Site
from foveate.methods.global_local import GlobalLocal
from foveate.recipes import Recipe

_KEEP, _THEN = Budget.of_count(96), Budget.of_ratio("0.333")


@dataclass(frozen=True)
class VScan(Recipe):
    """Half global, half local tokens before the language model, and a third of them, by attention, from its middle on.

    Attributes:
        keep: what enters the language model; with a third from the middle on, a sixth is a ninth on average (64 of 576).
        then: what stays of that from the middle on.
        layer: the decoder layer in the middle: 16 of 32, 14 of 28.
        merge: False drops what the first stage does not choose (the shape of TRIO); True merges it.
        method: who chooses in the middle.
    """

    keep: Budget = _KEEP
    then: Budget = _THEN
    layer: int = 16
    merge: bool = True
    method: str = "fastv"

    notes: ClassVar[tuple[str, ...]] = (
        "layer=16 is the middle of 32 decoder layers: write your model's, e.g. layer=14 for 28",
    )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return (
            "vscan(layer={k2}, keep=0.5, then=0.5)",
            "vscan(layer={k2}, keep=0.6, then=3, merge=off, method=dart)",
        )

    def expand(self) -> tuple[Stage, ...]:
        first = Stage(Site.pre_llm(), GlobalLocal(merge=self.merge), self.keep)
        return first, Stage(Site.llm_layer(self.layer), methods.get(self.method)(), self.then)
