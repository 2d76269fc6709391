"""What each survivor of each stage stands for, as one picture: stage beside stage, part below part."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw

from foveate.core.trace import MediumTrace
from foveate.viz.film import FilmFrame, film_picture
from foveate.viz.overlay import kept_overlay, stack, strip
from foveate.viz.parts import Part
from foveate.viz.regions import PALETTE, Regions, regions_of

# Pixels of a panel's width, and of its height where pictures are tall.
_SIDE, _HIGHEST = 336, 640
_TINT = 0.55


def merge_stages(entry: MediumTrace, parts: Sequence[Part]) -> Image.Image:
    """One row for each part: what the model sees, then the regions after each stage. Captions say the stage and counts."""
    stages = regions_of(entry, list(parts))
    return stack([strip([_seen(part), *(_panel(regions, part) for regions in stages)]) for part in parts])


def merge_film(media: Sequence[tuple[MediumTrace, Sequence[Part]]]) -> Image.Image:
    """The frames of a video side by side, a line for each stage, and under each frame how much of it survived."""
    frames = []
    for entry, parts in media:
        stages = regions_of(entry, list(parts))
        for part in parts:
            panels = [_panel(regions, part)[1] for regions in stages]
            frames.append(FilmFrame(part, _picture(part), panels, [len(regions.in_part(part)) for regions in stages]))
    return film_picture([stage for stage, _ in media[0][0].stages], frames)


def _seen(part: Part) -> tuple[str, Image.Image]:
    picture = _picture(part)
    size = kept_overlay(picture, (1, part.rows, part.columns), [], _side(part)).size
    return f"{part.title}: {part.stop - part.start} tokens", picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _panel(regions: Regions, part: Part) -> tuple[str, Image.Image]:
    """Survivors outlined, thick in their colour where they absorbed others; what they absorbed tinted; dropped tokens dark."""
    hosts, inside = regions.hosts(), regions.in_part(part)
    alive = [token - part.start for token in hosts if part.start <= token < part.stop]
    picture = kept_overlay(_picture(part), (1, part.rows, part.columns), sorted(alive), _side(part), outline=None)
    width, height = picture.width // part.columns, picture.height // part.rows
    pen, tinted = ImageDraw.Draw(picture), picture.copy()
    paint = ImageDraw.Draw(tinted)
    for at in alive:
        color = regions.colors[hosts[part.start + at][0][0]]
        if color >= 0:
            paint.rectangle(_box(at, part, width, height), fill=ImageColor.getrgb(PALETTE[color]))
    picture.paste(Image.blend(picture, tinted, _TINT))
    for number in inside:
        color, box = regions.colors[number], _box(regions.kept[number] - part.start, part, width, height)
        if color >= 0:
            pen.rectangle(box, outline="black", width=max(3, width // 5))
            pen.rectangle(box, outline=PALETTE[color], width=max(2, width // 7))
        else:
            pen.rectangle(box, outline=(235, 235, 235))
    dropped = part.stop - part.start - len(alive)
    lost = f", {dropped} dropped" if dropped else ""
    return f"{regions.stage}: {len(inside)}{lost}", picture


def _box(at: int, part: Part, width: int, height: int) -> tuple[int, int, int, int]:
    y, x = divmod(at, part.columns)
    return x * width, y * height, (x + 1) * width - 1, (y + 1) * height - 1


def _picture(part: Part) -> Image.Image:
    return part.picture if part.picture is not None else Image.new("RGB", (part.columns * 8, part.rows * 8), (150, 150, 150))


def _side(part: Part) -> int:
    return max(part.columns, min(_SIDE, round(_HIGHEST / part.aspect)))
