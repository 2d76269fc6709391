"""Where in an LVLM a stage acts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from foveate.errors import PlanError


class SiteKind(str, Enum):
    """The places of the pipeline pixels -> vision encoder -> prompt -> decoder -> KV cache -> decode steps."""

    PIXELS = "pixels"
    VISION_LAYER = "vision"
    PRE_LLM = "pre_llm"
    LLM_LAYER = "llm"
    KV_CACHE = "kv_cache"
    DECODE = "decode"


class Point(str, Enum):
    """Where a stage in front of an encoder block stands: right before it, or in the middle of the block below."""

    BEFORE = "before"
    MID = "mid"


# Beyond any model.
MOST_LAYERS = 10**6
LAYERED = (SiteKind.VISION_LAYER, SiteKind.LLM_LAYER, SiteKind.DECODE)


@dataclass(frozen=True)
class Site:
    """A place, with a layer index (counted from 0) where the place has layers.

    `LLM_LAYER(k)`: the tokens are gone *before* decoder layer k runs, so k >= 1; for k = 0 there is PRE_LLM.
    `VISION_LAYER(i)` with `point` MID: they are gone between the attention and the MLP of block i - 1 (iLLaVA's own place).
    """

    kind: SiteKind
    layer: int | None = None
    point: Point = Point.BEFORE

    def __post_init__(self) -> None:
        if self.layer is not None and (isinstance(self.layer, bool) or not isinstance(self.layer, int)):
            raise PlanError(f"layer={self.layer!r}: a layer is a whole number")
        if self.layer is not None and self.layer >= MOST_LAYERS:  # not shown: it may have a million digits
            raise PlanError(f"site {self.kind.value}: no model has {MOST_LAYERS:,} layers")
        if self.layer is not None and self.layer < 0:
            raise PlanError(f"layer={max(self.layer, -MOST_LAYERS)}: layers are counted from 0, a layer is never negative")
        if (self.layer is not None) != (self.kind in LAYERED):
            raise PlanError(f"site {self.kind.value}: {'needs a layer' if self.kind in LAYERED else 'takes no layer'}")
        if self.kind is SiteKind.LLM_LAYER and self.layer == 0:
            raise PlanError(
                "layer=0: no decoder layer has run yet, so there is no attention; use a method that needs none, e.g. "
                "random(site=pre_llm, keep=0.5)"
            )
        if self.point is Point.MID and (self.kind is not SiteKind.VISION_LAYER or self.layer == 0):
            raise PlanError("point=mid is the middle of the encoder block below the stage: write site=vision and layer >= 1")

    @classmethod
    def llm_layer(cls, layer: int) -> Site:
        """Before decoder layer `layer` (>= 1) runs."""
        return cls(SiteKind.LLM_LAYER, layer)

    @classmethod
    def pre_llm(cls) -> Site:
        """Before decoder layer 0 runs."""
        return cls(SiteKind.PRE_LLM)

    @property
    def decoder_layer(self) -> int | None:
        """The decoder layer in front of which the stage acts, or None for a place outside the decoder."""
        if self.kind is SiteKind.PRE_LLM:
            return 0
        return self.layer if self.kind is SiteKind.LLM_LAYER else None

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"({self.layer}{', mid' if self.point is Point.MID else ''})"
        return self.kind.value + layer
