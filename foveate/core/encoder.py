"""Where a family's vision encoder keeps its tokens, in the words that the engine needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from foveate.core.canvas import Canvas


@dataclass(frozen=True)
class EncoderPath:
    """A vision encoder whose layers take [B, prefix + h * w, D] and attend within each row. Paths are dotted, from the top.

    Attributes:
        towers: the modules whose output holds the features, with the full number of tokens; several, of one shape, where
            images and videos have encoders of their own.
        projector: the module after it whose output rows are visual tokens.
        attention: the attention module within an encoder layer.
        grid: (h, w) patches of each row.
        prefix: tokens in front of the patches (a class token), which always stay.
        unit: side of the square of patches that becomes one visual token; decisions are made on whole squares.
        used: how many of its layers the language model's features pass; a stage after them would change nothing.
        pooler: a module in front of the projector that shrinks each row it gets, as `pooled` says; not all rows pass it.
        pooled: what it makes of a row.
        middle: the second norm and the MLP within a layer that computes x + attention(norm(x)), then x + mlp(norm(x)); None
            for other layers, in whose middle no stage can stand.
        mixes: whether tokens are mixed with their neighbours between projector and prompt, where marks of tokens that are
            gone would spread. What is left of a visual token then follows from the canvases of its medium.
    """

    towers: tuple[str, ...]
    projector: str
    grid: tuple[int, int]
    used: int
    attention: str = "self_attn"
    prefix: int = 0
    unit: int = 1
    pooler: str = ""
    pooled: Canvas | None = None
    mixes: bool = False
    middle: tuple[str, str] | None = None

    def layer_at(self, depth: float) -> int:
        """The layer at a share of those that the features pass."""
        return max(1, math.ceil(depth * self.used)) - 1

    @property
    def patches(self) -> int:
        """Patches of each row."""
        return self.grid[0] * self.grid[1]

    @property
    def unit_grid(self) -> tuple[int, int]:
        """(h, w) in units."""
        return self.grid[0] // self.unit, self.grid[1] // self.unit


@dataclass(frozen=True)
class PackedPath:
    """A vision encoder that packs all pictures into one sequence [patches, D], cut by cu_seqlens. Paths are dotted.

    Attributes:
        tower: the module that takes pixels and (t, h, w) of each picture in patches.
        merger: the module, below the tower, whose output rows are visual tokens.
        side_mergers: modules whose outputs feed early decoder layers (DeepStack).
        attention: the attention module within an encoder layer.
        unit: side of the square of patches that becomes one visual token; its patches are consecutive.
        used: how many layers there are.
        windowed: the layers that attend within windows; what they attend to says nothing about the whole picture.
    """

    tower: str
    merger: str
    unit: int
    used: int
    attention: str = "attn"
    side_mergers: tuple[str, ...] = ()
    windowed: tuple[int, ...] = ()

    def layer_at(self, depth: float) -> int:
        """The last layer that looks at the whole picture, up to a share of all layers; the first one where none does."""
        full = [layer for layer in range(self.used) if layer not in self.windowed]
        return max((layer for layer in full if layer < math.ceil(depth * self.used)), default=full[0])

    @property
    def towers(self) -> tuple[str, ...]:
        """The tower, as `EncoderPath` names them."""
        return (self.tower,)


@dataclass(frozen=True)
class RasterPath(PackedPath):
    """A packed encoder, [1, patches, D], of pictures whose patches lie in raster order, with its merger behind it (Pixtral).

    Attributes:
        tower: the module that takes pixels and `image_sizes` in pixels, and whose output holds the features of every patch.
        merger: the module after it, from the top, whose output rows are visual tokens.
        patch: side of a patch in pixels.
    """

    patch: int = field(kw_only=True)
