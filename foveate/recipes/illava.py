"""iLLaVA: merge inside the vision encoder and inside the LLM. Wang et al., arXiv:2412.06263.

The authors' program merges inside an encoder block, between its attention and its MLP; here the merge stands in front of the
next block, so that one MLP runs at the old length. `point=mid` is the authors' place, for CLIP and SigLIP.

Presets hold the numbers of the authors' scripts, except those in `SCALED`. The papers also report LLaVA-NeXT and InternVL,
without the numbers of their layers; those presets are ours: the one for LLaVA-OneVision, its layers moved in proportion to the
depth of encoder and LLM, its counts in proportion to the patches of a crop. Nobody has measured them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from foveate import methods
from foveate.core.budget import Budget, Rounding
from foveate.core.plan import Stage
from foveate.core.site import Point, Site, SiteKind
from foveate.errors import SpecError, UnknownName, did_you_mean
from foveate.recipes import Recipe, rounded

VARIANTS = {"v1": "illava_v1", "v2": "illava_v2", "partition": "partition"}
# Options of one variant alone.
_OWN = {"v1": ("ramp",), "v2": ("mode", "recycle", "partners", "absorb"), "partition": ()}


def _counts(*counts: int) -> tuple[Budget, ...]:
    return tuple(Budget.of_count(count) for count in counts)


def _ratios(ratio: str, times: int, rounding: Rounding = Rounding.HALF_UP) -> tuple[Budget, ...]:
    return (Budget.of_ratio(ratio, rounding),) * times


# 92 tokens go at each of four blocks of 729 patches. Qwen2-VL removes .16 of the patches, rounded down to whole squares.
_ONEVISION = dict(variant="v1", vit_keep=_counts(637, 545, 453, 361), llm_keep=_ratios("0.7", 1))
_QWEN2 = dict(variant="v1", vit_layers=(12, 13, 14, 15), vit_keep=_ratios("0.84", 4, Rounding.CEIL))


def _scaled(encoder_layers: int, llm_layers: int, patches: int, unit: int = 1) -> dict[str, Any]:
    """The LLaVA-OneVision image preset (26 encoder layers, 28 of the LLM, 729 patches) on a model of these sizes.

    `unit` patches stay together, so counts are multiples of it.
    """
    first = round(5 * encoder_layers / 26)
    kept = [round(patches // unit * left / 729) * unit for left in (637, 545, 453, 361)]
    return dict(
        variant="v1",
        vit_layers=tuple(range(first, first + 4)),
        vit_keep=_counts(*kept),
        llm_layers=(round(8 * llm_layers / 28),),
        llm_keep=_ratios("0.7", 1),
    )


SCALED: Mapping[str, Mapping[str, Any]] = {
    "llava-next-13b": _scaled(24, 40, 576),
    "llava-next-34b": _scaled(24, 60, 576),
    "internvl2.5-8b": _scaled(24, 32, 1024, unit=4),
    "internvl2.5-26b": _scaled(45, 48, 1024, unit=4),
    "internvl3-8b": _scaled(24, 28, 1024, unit=4),
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "onevision-image": dict(**_ONEVISION, vit_layers=(5, 6, 7, 8), llm_layers=(8,)),
    "onevision-video": dict(**_ONEVISION, vit_layers=(3, 4, 5, 6), llm_layers=(2,)),
    "qwen2-vl-2b": _QWEN2,
    "qwen2-vl-7b": dict(**_QWEN2, llm_layers=(6, 7, 8), llm_keep=_ratios("0.9", 3)),
    "qwen3-vl-8b": dict(
        variant="v2",
        vit_layers=(5, 6, 7, 8),
        vit_keep=_ratios("0.85", 4, Rounding.HALF_EVEN),  # Python's round, as in their program
        llm_layers=(19, 21, 23, 25),
        llm_keep=_ratios("0.9", 4, Rounding.HALF_EVEN),
    ),
}
PRESETS: Mapping[str, Mapping[str, Any]] = {**PUBLISHED, **SCALED}


@dataclass(frozen=True)
class Illava(Recipe):
    """Merge inside the vision encoder and before LLM layers: `illava(preset=onevision-image)`, or every number by hand.

    By hand: `illava(vit_layers=5..6, vit_keep=[637, 545], llm_layers=8, llm_keep=0.7)`.

    Attributes:
        preset: a setting by name; the other words change it.
        only: "vit" or "llm" leaves the other part of a preset out.
        variant: "v1" (January 2025), "v2" (ICLR 2026), or "partition" (ours, the default: it measured better, docs/merging.md).
        vit_layers: encoder blocks whose attention ranks; the merge stands in front of the next block.
        vit_keep: one budget per block, of the tokens that arrive; counts are of patches.
        llm_layers: decoder layers in front of which the LLM's merges stand.
        llm_keep: one budget per decoder layer, of the tokens that arrive.
        point: "before" merges before the block after the one that ranks, "mid" between that one's attention and MLP.
        ramp: option of v1: which of the removed tokens weighs most.
        mode, recycle, partners, absorb: options of v2.
        query: whose attention ranks in the LLM, as for fastv.
        rounding: what becomes of a fraction of a token: "half_up", "half_even" (their v2), "floor" or "ceil"; "" as in the
            preset, half up without one.
    """

    preset: str = ""
    only: str = ""
    variant: str = ""
    vit_layers: tuple[int, ...] = ()
    vit_keep: tuple[Budget, ...] = ()
    llm_layers: tuple[int, ...] = ()
    llm_keep: tuple[Budget, ...] = ()
    point: str = "before"
    ramp: str = "least"
    mode: int = 3
    recycle: float = 0.05
    partners: int = 5
    absorb: float = 0.5
    query: str = "last"
    rounding: str = ""

    notes: ClassVar[tuple[str, ...]] = (
        f"presets of the authors: {', '.join(PUBLISHED)}",
        f"presets of ours, scaled by depth from onevision-image and not measured: {', '.join(SCALED)}",
        "published: detail-heavy pictures lose most (AI2D -2.8, MMStar -2.7, SeedBench -1.8 points on LLaVA-OneVision-7B)",
    )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return (
            "illava(llm_layers={k}, llm_keep=0.5)",
            "illava(variant=v1, ramp=even, query=text, llm_layers=[{k}, {k2}], llm_keep=[0.7, 0.6], rounding=floor)",
            "illava(variant=v2, recycle=0.3, partners=2, absorb=0.7, llm_layers={k}, llm_keep=0.5)",
            "illava(variant=v2, mode=1, llm_layers={k}, llm_keep=0.5)",
            "illava(vit_layers={v}, vit_keep=0.5, llm_layers={k}, llm_keep=0.5)",
            "illava(vit_layers={v}, vit_keep=0.5, point=mid)",
            "illava(preset=qwen2-vl-7b, only=llm)",
        )

    def expand(self) -> tuple[Stage, ...]:
        settings = self._with_preset()._part()
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
        if settings.point not in [point.value for point in Point]:
            raise SpecError(f"illava(point={settings.point}): before and mid are known")
        options = settings._options()
        vit_keep, llm_keep = settings._rounded(settings.vit_keep), settings._rounded(settings.llm_keep)
        method = methods.get(VARIANTS[settings.variant or "partition"])(**options)
        inside = [
            Stage(Site(SiteKind.VISION_LAYER, layer + 1, Point(settings.point)), method, budget)
            for layer, budget in zip(settings.vit_layers, vit_keep, strict=True)
        ]
        behind = [
            Stage(Site.llm_layer(layer), method, budget) for layer, budget in zip(settings.llm_layers, llm_keep, strict=True)
        ]
        return (*inside, *behind)

    def _with_preset(self) -> Illava:
        if not self.preset:
            return self
        if self.preset not in PRESETS:
            raise UnknownName(f"illava has no preset '{self.preset}'." + did_you_mean(self.preset, PRESETS))
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return replace(Illava(**PRESETS[self.preset]), **changed)

    def _part(self) -> Illava:
        if not self.only:
            return self
        if self.only not in ("vit", "llm"):
            raise SpecError(f"illava(only={self.only}): vit and llm are known; leave only out for both")
        if self.only == "vit":
            return replace(self, llm_layers=(), llm_keep=())
        return replace(self, vit_layers=(), vit_keep=())

    def _rounded(self, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        return rounded("illava", budgets, self.rounding) if self.rounding else budgets

    def _options(self) -> dict[str, Any]:
        """The options of the variant's method."""
        variant = self.variant or "partition"
        if variant not in VARIANTS:
            raise SpecError(f"illava(variant={variant}): {', '.join(VARIANTS)} are known")
        usual = {f.name: f.default for f in fields(self)}
        for owner, names in _OWN.items():
            for name in names:
                if owner != variant and getattr(self, name) != usual[name]:
                    raise SpecError(f"illava(variant={variant}): {name} is an option of variant={owner}")
        return {name: getattr(self, name) for name in ("query", *_OWN[variant])}
