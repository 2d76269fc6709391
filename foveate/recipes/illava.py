"""iLLaVA: merge inside the vision encoder and inside the LLM. Wang et al., arXiv:2412.06263.

The authors' program merges inside an encoder block, between its attention and its MLP; here the merge stands in front of the
next block, so that one MLP runs at the old length. Presets hold the numbers of the authors' scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from foveate import methods
from foveate.core.budget import Budget, Rounding
from foveate.core.method import Method
from foveate.core.plan import Stage
from foveate.core.site import Site, SiteKind
from foveate.errors import SpecError, UnknownName, did_you_mean
from foveate.recipes import Recipe

VARIANTS = {"v1": "illava_v1", "v2": "illava_v2", "partition": "partition"}


def _counts(*counts: int) -> tuple[Budget, ...]:
    return tuple(Budget.of_count(count) for count in counts)


def _ratios(ratio: str, times: int, rounding: Rounding = Rounding.HALF_UP) -> tuple[Budget, ...]:
    return (Budget.of_ratio(ratio, rounding),) * times


# 92 tokens go at each of four blocks of 729 patches. Qwen2-VL removes .16 of the patches, rounded down to whole squares.
_ONEVISION = dict(variant="v1", vit_keep=_counts(637, 545, 453, 361), llm_keep=_ratios("0.7", 1))
_QWEN2 = dict(variant="v1", vit_layers=(12, 13, 14, 15), vit_keep=_ratios("0.84", 4, Rounding.CEIL))
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "onevision-image": dict(**_ONEVISION, vit_layers=(5, 6, 7, 8), llm_layers=(8,)),
    "onevision-video": dict(**_ONEVISION, vit_layers=(3, 4, 5, 6), llm_layers=(2,)),
    "qwen2-vl-2b": _QWEN2,
    "qwen2-vl-7b": dict(**_QWEN2, llm_layers=(6, 7, 8), llm_keep=_ratios("0.9", 3)),
    "qwen3-vl-8b": dict(
        variant="v2",
        vit_layers=(5, 6, 7, 8),
        vit_keep=_ratios("0.85", 4),
        llm_layers=(19, 21, 23, 25),
        llm_keep=_ratios("0.9", 4),
    ),
}


@dataclass(frozen=True)
class Illava(Recipe):
    """`illava(preset=onevision-image)`, or `illava(vit_layers=5..6, vit_keep=[637, 545], llm_layers=8, llm_keep=0.7)`.

    Attributes:
        preset: a published setting; the other words change it.
        variant: "v1" (January 2025), "v2" (ICLR 2026) or "partition" (ours).
        vit_layers: encoder blocks whose attention ranks; the merge stands in front of the next block.
        vit_keep: one budget per block, of the tokens that arrive; counts are of patches.
        llm_layers: decoder layers in front of which the LLM's merges stand.
        llm_keep: one budget per decoder layer, of the tokens that arrive.
        recycle, partners, absorb: options of v2.
        query: whose attention ranks in the LLM, as for fastv.
    """

    preset: str = ""
    variant: str = ""
    vit_layers: tuple[int, ...] = ()
    vit_keep: tuple[Budget, ...] = ()
    llm_layers: tuple[int, ...] = ()
    llm_keep: tuple[Budget, ...] = ()
    recycle: float = 0.05
    partners: int = 5
    absorb: float = 0.5
    query: str = "last"

    def expand(self) -> tuple[Stage, ...]:
        settings = self._with_preset()
        for where, layers, keep in (
            ("vit", settings.vit_layers, settings.vit_keep),
            ("llm", settings.llm_layers, settings.llm_keep),
        ):
            if len(layers) != len(keep):
                raise SpecError(
                    f"illava has {len(layers)} {where}_layers and {len(keep)} {where}_keep: write as many of each, e.g. "
                    f"{where}_layers=[5, 6], {where}_keep=[0.8, 0.8]"
                )
        if not settings.vit_layers and not settings.llm_layers:
            raise SpecError(
                f"illava merges nowhere: write preset={next(iter(PRESETS))}, or vit_layers and vit_keep, or llm_..."
            )
        method = settings._method()
        inside = [
            Stage(Site(SiteKind.VISION_LAYER, layer + 1), method, budget)
            for layer, budget in zip(settings.vit_layers, settings.vit_keep, strict=True)
        ]
        behind = [
            Stage(Site.llm_layer(layer), method, budget)
            for layer, budget in zip(settings.llm_layers, settings.llm_keep, strict=True)
        ]
        return (*inside, *behind)

    def _with_preset(self) -> Illava:
        if not self.preset:
            return self
        if self.preset not in PRESETS:
            raise UnknownName(f"illava has no preset '{self.preset}'." + did_you_mean(self.preset, PRESETS))
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return replace(Illava(**PRESETS[self.preset]), **changed)

    def _method(self) -> Method:
        variant = self.variant or "v2"
        if variant not in VARIANTS:
            raise SpecError(f"illava(variant={variant}): {', '.join(VARIANTS)} are known")
        options: dict[str, Any] = {"query": self.query}
        if variant == "v2":
            options |= {"recycle": self.recycle, "partners": self.partners, "absorb": self.absorb}
        elif (self.recycle, self.partners, self.absorb) != (0.05, 5, 0.5):
            raise SpecError(f"illava(variant={variant}): recycle, partners and absorb are options of variant=v2")
        return methods.get(VARIANTS[variant])(**options)
