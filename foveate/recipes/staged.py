"""Staged: the same method at several decoder layers, each keeping a share of what reaches it.

The schedule of PyramidDrop (arXiv 2410.17247) with a scoring method of your choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate import methods
from foveate.core.budget import Budget
from foveate.core.plan import Stage
from foveate.core.site import Site
from foveate.errors import SpecError
from foveate.recipes import Recipe, rounded


@dataclass(frozen=True)
class Staged(Recipe):
    """The same method before several LLM layers: `staged(method=fastv, layers=[8, 16, 24], keep=[0.5, 0.5, 0.5])`.

    Attributes:
        method: name of a method that acts in front of decoder layers; its options keep their defaults.
        layers: decoder layers in front of which it acts.
        keep: one budget per layer.
        rounding: what becomes of a fraction of a token: "half_up", "half_even" (FastV's Hugging Face code), "floor" or "ceil".
    """

    method: str = "fastv"
    layers: tuple[int, ...] = ()
    keep: tuple[Budget, ...] = ()
    rounding: str = "half_up"

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return (
            "staged(layers=[{k}, {k2}], keep=[0.6, 0.5])",
            "staged(method=random, layers=[{k}, {k2}], keep=[0.7, 9tok], rounding=floor)",
        )

    def expand(self) -> tuple[Stage, ...]:
        if not self.layers or len(self.layers) != len(self.keep):
            raise SpecError(
                f"staged has {len(self.layers)} layers and {len(self.keep)} budgets: "
                "write as many of each, e.g. staged(layers=[8, 16], keep=[0.5, 0.5])"
            )
        method, budgets = methods.get(self.method)(), rounded("staged", self.keep, self.rounding)
        return tuple(Stage(Site.llm_layer(k), method, budget) for k, budget in zip(self.layers, budgets, strict=True))
