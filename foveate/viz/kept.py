"""What each stage of a plan kept of a medium, stage beside stage and part below part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from foveate.core.trace import MediumTrace
from foveate.viz.overlay import kept_overlay, stack, strip
from foveate.viz.parts import Part

# Pixels of a panel's width, and of its height where pictures are tall.
_SIDE, _HIGHEST = 336, 640


def kept_stages(entry: MediumTrace, parts: Sequence[Part]) -> Image.Image:
    """One row for each part: what the model sees, then what stayed behind each stage. Captions say the stage and counts."""
    return stack([_row(entry, part) for part in parts])


def _row(entry: MediumTrace, part: Part) -> Image.Image:
    count = part.stop - part.start
    side = max(part.columns, min(_SIDE, round(_HIGHEST / part.aspect)))
    seen = part.picture if part.picture is not None else Image.new("RGB", (part.columns * 8, part.rows * 8), (150, 150, 150))
    everything = list(range(count))
    size = kept_overlay(seen, (1, part.rows, part.columns), everything, side).size
    panels = [(f"{part.title}: {count} tokens", seen.convert("RGB").resize(size, Image.Resampling.LANCZOS))]
    for (stage, _), kept in zip(entry.stages, entry.kept, strict=True):
        own = kept[(kept >= part.start) & (kept < part.stop)] - part.start
        overlay = kept_overlay(seen, (1, part.rows, part.columns), torch.as_tensor(own).tolist(), side)
        panels.append((f"{stage}: {len(own)}", overlay))
    return strip(panels)
