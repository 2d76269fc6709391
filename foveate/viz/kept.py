"""What each stage of a plan kept of a medium, stage beside stage and part below part."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from foveate.core.trace import MediumTrace
from foveate.viz.film import FilmFrame, film_picture
from foveate.viz.overlay import kept_overlay, stack, strip
from foveate.viz.parts import Part

# Pixels of a panel's width, and of its height where pictures are tall.
_SIDE, _HIGHEST = 336, 640


def kept_stages(entry: MediumTrace, parts: Sequence[Part]) -> Image.Image:
    """One row for each part: what the model sees, then what stayed after each stage. Captions say the stage and counts."""
    return stack([_row(entry, part) for part in parts])


def kept_film(media: Sequence[tuple[MediumTrace, Sequence[Part]]]) -> Image.Image:
    """The frames of a video side by side, a line for each stage, and under each frame how much of it stayed."""
    frames = []
    for entry, parts in media:
        for part in parts:
            seen, grid, kept = _picture(part), (1, part.rows, part.columns), [kept_in(part, kept) for kept in entry.kept]
            panels = [kept_overlay(seen, grid, own, _SIDE) for own in kept]
            frames.append(FilmFrame(part, seen, panels, [len(own) for own in kept]))
    return film_picture([stage for stage, _ in media[0][0].stages], frames)


def kept_in(part: Part, kept: Tensor) -> list[int]:
    """Which tokens of a part are among a medium's kept ones [K]: raster indices within the part."""
    own: list[int] = (kept[(kept >= part.start) & (kept < part.stop)] - part.start).tolist()
    return own


def _row(entry: MediumTrace, part: Part) -> Image.Image:
    count = part.stop - part.start
    side = max(part.columns, min(_SIDE, round(_HIGHEST / part.aspect)))
    seen = _picture(part)
    size = kept_overlay(seen, (1, part.rows, part.columns), [], side).size
    panels = [(f"{part.title}: {count} tokens", seen.convert("RGB").resize(size, Image.Resampling.LANCZOS))]
    for (stage, _), kept in zip(entry.stages, entry.kept, strict=True):
        own = kept_in(part, kept)
        overlay = kept_overlay(seen, (1, part.rows, part.columns), own, side)
        panels.append((f"{stage}: {len(own)}", overlay))
    return strip(panels)


def _picture(part: Part) -> Image.Image:
    return part.picture if part.picture is not None else Image.new("RGB", (part.columns * 8, part.rows * 8), (150, 150, 150))
