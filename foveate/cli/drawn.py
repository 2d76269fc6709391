"""What the views draw: the media of a prompt beside the pictures and frames that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from foveate.api import Video
from foveate.cli import loading
from foveate.cli.media import Shown
from foveate.core.layout import Medium
from foveate.core.plan import Plan
from foveate.core.shape import MediumShape
from foveate.core.trace import MediumTrace, Trace
from foveate.errors import InputError
from foveate.viz.parts import Moment, Part, at_moment, groups_of, is_tiled, parts_of, tile_pictures, video_parts


def traced_parts(
    trace: Trace, shown: Sequence[Shown], inputs: Mapping[str, Any], processor: Any
) -> list[tuple[MediumTrace, list[Part]]]:
    """What became of each medium of one prompt, with what its tokens show."""
    drawn = with_parts([entry.medium for entry in trace.media], shown, inputs, processor)
    return [(entry, parts) for entry, (_, parts) in zip(trace.media, drawn, strict=True)]


def with_parts(
    media: Sequence[Medium], shown: Sequence[Shown], inputs: Mapping[str, Any], processor: Any
) -> list[tuple[Medium, list[Part]]]:
    """The media of a prompt with what their tokens show: one for each picture; for a video one, or one for each frame.

    Raises:
        InputError: if the processor made other media than that.
    """
    tiles = _tiles([medium.shape for medium in media if medium.shape.kind == "image"], inputs, processor)
    out: list[tuple[Medium, list[Part]]] = []
    for number, (one, own) in enumerate(zip(shown, _of_each(media, shown), strict=True)):
        name, frames = one.path.name, one.frames
        seconds = one.content.seconds if isinstance(one.content, Video) else None
        for at, medium in enumerate(own):
            shape = medium.shape
            if shape.kind == "video":
                seen = [loading.as_seen(frame, processor.video_processor) for frame in frames]
                out.append((medium, video_parts(shape, name, number, seen, seconds or [])))
                continue
            cut, tiles = tiles[: len(shape.grids)], tiles[len(shape.grids) :]
            whole = frames[at] if shape.crops else loading.as_seen(frames[at], processor.image_processor)
            parts = parts_of(shape, name, (cut or [None]) if is_tiled(shape) else [whole])
            if seconds is not None:
                parts = at_moment(parts, Moment(number, name, at + 1, at + 1, len(frames), seconds[at]))
            out.append((medium, parts))
    return out


def stage_table(plan: Plan, shown: Sequence[Shown], drawn: Sequence[tuple[MediumTrace, list[Part]]]) -> Table:
    """How many tokens of each picture and video are left after each stage."""
    table = Table(title=escape(str(plan)), title_justify="left")
    stages = [text for text, _ in drawn[0][0].stages]
    for heading in ("picture", "visual tokens", *map(escape, stages)):
        table.add_column(heading, overflow="fold", justify="left" if heading == "picture" else "right")
    for one, group in zip(shown, groups_of(drawn), strict=True):
        name = f"{one.path.name}, {len(one.frames)} frames" if isinstance(one.content, Video) else one.path.name
        counts = [sum(entry.medium.shape.grid_tokens for entry, _ in group)]
        counts += [sum(len(entry.kept[at]) for entry, _ in group) for at in range(len(stages))]
        table.add_row(escape(name), *map(str, counts))
    return table


def _of_each(media: Sequence[Medium], shown: Sequence[Shown]) -> list[list[Medium]]:
    """The media that each picture or video became."""
    rest, out = list(media), []
    for one in shown:
        count = 1 if rest and rest[0].shape.kind == "video" else len(one.frames)
        out.append(rest[:count])
        rest = rest[count:]
    if (
        rest
        or any(len(own) < 1 for own in out)
        or any(own[0].shape.kind == "image" and len(own) != len(one.frames) for own, one in zip(out, shown, strict=True))
    ):
        raise InputError(f"the processor made {len(media)} media of {len(shown)} pictures and videos, so they cannot be drawn")
    return out


def _tiles(shapes: Sequence[MediumShape], inputs: Mapping[str, Any], processor: Any) -> list[Image.Image]:
    """The tiles of all pictures, where families cut them into tiles."""
    pixels, images = inputs.get("pixel_values"), processor.image_processor
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if not any(is_tiled(shape) for shape in shapes) or not isinstance(pixels, Tensor) or not mean or not std:
        return []
    return tile_pictures(pixels, shapes, mean, std)
