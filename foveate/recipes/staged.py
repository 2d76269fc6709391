"""Staged: the same method at several decoder layers, each keeping a share of what reaches it.

The schedule of PyramidDrop (arXiv 2410.17247) with a scoring method of your choice. Presets name layers of a decoder with 32;
`depth` moves them in proportion. `adsc` downsamples without a score (arXiv 2602.12618) at PyramidDrop's layers and shares: the
paper's own layers are not known to us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from foveate import methods
from foveate.core.budget import Budget
from foveate.core.plan import Stage
from foveate.core.site import Site
from foveate.errors import SpecError, did_you_mean
from foveate.recipes import Recipe, rounded

_DEPTH = 32
# Method, layers of a decoder with 32, and what stays of what arrives.
PRESETS: Mapping[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "pyramiddrop": ("fastv", (8, 16, 24), ("0.5", "0.5", "0.5")),
    "v2drop": ("v2drop", (3, 17, 22), ("0.5", "0.5", "1tok")),
    "horizon": ("random", (20,), ("0.25",)),
    "adsc": ("uniform", (8, 16, 24), ("0.5", "0.5", "0.5")),
    # 300, 200, 110 of 576 tokens; 303, 110, 36; 66, 30, 17.
    "sparsevlm": ("sparsevlm", (2, 6, 15), ("0.520833", "0.666667", "0.55")),
    "sparsevlm128": ("sparsevlm", (2, 6, 15), ("0.526042", "0.363036", "0.327273")),
    "sparsevlm64": ("sparsevlm", (2, 6, 15), ("0.114583", "0.454545", "0.566667")),
}


@dataclass(frozen=True)
class Staged(Recipe):
    """The same method before several LLM layers: `staged(method=fastv, layers=[8, 16, 24], keep=[0.5, 0.5, 0.5])`.

    Attributes:
        method: name of a method that acts in front of decoder layers; its options keep their defaults.
        layers: decoder layers in front of which it acts.
        keep: one budget per layer.
        rounding: what becomes of a fraction of a token: "half_up", "half_even" (FastV's Hugging Face code), "floor" or "ceil".
        preset: a published schedule, whose method, layers and budgets hold where nothing else is said.
        depth: decoder layers of the model, for a preset's layers.
    """

    method: str = ""
    layers: tuple[int, ...] = ()
    keep: tuple[Budget, ...] = ()
    rounding: str = "half_up"
    preset: str = ""
    depth: int = _DEPTH

    notes: ClassVar[tuple[str, ...]] = (
        "presets: pyramiddrop (arXiv 2410.17247), v2drop (arXiv 2509.01552: all but one token go at last), horizon (random at "
        "five eighths of the depth, behind which nothing beats it: arXiv 2512.07580, share ours); depth=28 for 28 layers",
        "adsc (after arXiv 2602.12618: evenly spaced tokens and no score; layers are pyramiddrop's, the paper's own are not "
        "known to us)",
        "sparsevlm (arXiv 2410.04417: 300, 200 and 110 tokens of 576, about 192 on average), sparsevlm128 and sparsevlm64; the "
        "authors' program cuts behind layers 2, 6 and 15, not in front of them, which their averages do not count",
    )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return (
            "staged(layers=[{k}, {k2}], keep=[0.6, 0.5])",
            "staged(method=random, layers=[{k}, {k2}], keep=[0.7, 9tok], rounding=floor)",
            "staged(preset=v2drop, layers=[{k}, {k2}], keep=[0.6, 0.5])",
            "staged(preset=sparsevlm, layers=[{k}, {k2}], keep=[0.6, 0.5])",
            "staged(preset=pyramiddrop, depth=28)",
        )

    def expand(self) -> tuple[Stage, ...]:
        name, at, shares = self._preset()
        layers, keep = self.layers or at, self.keep or tuple(Budget.read(share) for share in shares)
        if not layers or len(layers) != len(keep):
            raise SpecError(
                f"staged has {len(layers)} layers and {len(keep)} budgets: "
                "write as many of each, e.g. staged(layers=[8, 16], keep=[0.5, 0.5])"
            )
        method, budgets = methods.get(self.method or name)(), rounded("staged", keep, self.rounding)
        return tuple(Stage(Site.llm_layer(k), method, budget) for k, budget in zip(layers, budgets, strict=True))

    def _preset(self) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
        if not self.preset:
            if self.depth != _DEPTH:
                raise SpecError("staged(depth=...) moves the layers of a preset: name one, or write layers=[...]")
            return "fastv", (), ()
        if self.preset not in PRESETS:
            raise SpecError(f"staged(preset={self.preset}) is not known." + did_you_mean(self.preset, list(PRESETS)))
        if not 4 <= self.depth <= 1000:
            raise SpecError(f"staged(depth={self.depth}): write the number of decoder layers, 4 to 1000")
        name, layers, shares = PRESETS[self.preset]
        scaled: list[int] = []
        for layer in layers:  # a shallow decoder still has one layer for each
            scaled.append(max(scaled[-1] + 1 if scaled else 1, round(layer * self.depth / _DEPTH)))
        return name, tuple(scaled), shares
