"""What each stage of a plan kept of a medium, stage beside stage and part below part."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from foveate.core.trace import MediumTrace
from foveate.viz.overlay import kept_overlay, stack, strip
from foveate.viz.parts import Part

# Pixels of a panel's width, and of its height where pictures are tall.
_SIDE, _HIGHEST = 336, 640


def kept_stages(entry: MediumTrace, parts: Sequence[Part]) -> Image.Image:
    """One row for each part: what the model sees, then what stayed behind each stage. Captions say the stage and counts."""
    return stack([_row(entry, part) for part in parts])


def kept_in(part: Part, kept: Tensor) -> list[int]:
    """Which tokens of a part are among a medium's kept ones [K]: raster indices within the part."""
    own: list[int] = (kept[(kept >= part.start) & (kept < part.stop)] - part.start).tolist()
    return own


def _row(entry: MediumTrace, part: Part) -> Image.Image:
    count = part.stop - part.start
    side = max(part.columns, min(_SIDE, round(_HIGHEST / part.aspect)))
    seen = part.picture if part.picture is not None else Image.new("RGB", (part.columns * 8, part.rows * 8), (150, 150, 150))
    size = kept_overlay(seen, (1, part.rows, part.columns), [], side).size
    panels = [(f"{part.title}: {count} tokens", seen.convert("RGB").resize(size, Image.Resampling.LANCZOS))]
    for (stage, _), kept in zip(entry.stages, entry.kept, strict=True):
        own = kept_in(part, kept)
        overlay = kept_overlay(seen, (1, part.rows, part.columns), own, side)
        panels.append((f"{stage}: {len(own)}", overlay))
    return strip(panels)
