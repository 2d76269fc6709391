"""The parts of images and videos that views draw: whole pictures, crops, frames, each with a grid of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from PIL import Image
from torch import Tensor

from foveate.core.shape import MediumShape

T = TypeVar("T")


@dataclass(frozen=True)
class Moment:
    """Where a part stands in a video.

    Attributes:
        film: number of the video among the pictures and videos of a prompt.
        name: of the video.
        first, last: the frames that the part shows, counted from 1; models may take several together.
        total: frames of the video that the model got.
        seconds: when the first of them is shown.
    """

    film: int
    name: str
    first: int
    last: int
    total: int
    seconds: float

    @property
    def label(self) -> str:
        """As people read it: `frame 3 of 8, 1.2 s`."""
        frames = f"frame {self.first}" if self.first == self.last else f"frames {self.first}-{self.last}"
        return f"{frames} of {self.total}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Part:
    """One grid of visual tokens and what it shows.

    Attributes:
        title: as people read it.
        picture: what lies under the grid; None if that is not known.
        rows, columns: sides of the grid in tokens.
        start: number of its first token within the grid tokens of its medium.
        moment: of a part of a video, where it stands in it.
    """

    title: str
    picture: Image.Image | None
    rows: int
    columns: int
    start: int
    moment: Moment | None = None

    @property
    def stop(self) -> int:
        """Number after its last token."""
        return self.start + self.rows * self.columns

    @property
    def aspect(self) -> float:
        """Height by width of the picture, or of square tokens where there is none."""
        return self.rows / self.columns if self.picture is None else self.picture.height / self.picture.width


def parts_of(shape: MediumShape, title: str, pictures: Sequence[Image.Image | None]) -> list[Part]:
    """The parts of a medium, in token order.

    Args:
        shape: of the medium.
        title: of the medium.
        pictures: one for each crop and frame (`shape.pieces`), or one that all of them show.
    """
    pieces, start, parts = shape.pieces, 0, []
    shown = list(pictures) * len(pieces) if len(pictures) == 1 else list(pictures)
    word = "frame" if shape.kind == "video" else "part"
    for number, ((_, rows, columns), picture) in enumerate(zip(pieces, shown, strict=True), start=1):
        name = title if len(pieces) == 1 else f"{title}, {word} {number} of {len(pieces)}"
        parts.append(Part(name, picture, rows, columns, start))
        start = parts[-1].stop
    return parts


def video_parts(
    shape: MediumShape, name: str, film: int, pictures: Sequence[Image.Image], seconds: Sequence[float]
) -> list[Part]:
    """The parts of a medium that is a whole video.

    Args:
        shape: of the medium.
        name: of the video.
        film: number of the video among the pictures and videos of the prompt.
        pictures, seconds: its frames and when they are shown. Of frames that the model takes together the first is drawn.
    """
    total, count = len(pictures), len(shape.pieces)
    together = -(-total // count)
    starts = [min(at * together, total - 1) for at in range(count)]  # the last frame is repeated to fill the last part
    moments = [Moment(film, name, at + 1, min(at + together, total), total, seconds[at]) for at in starts]
    parts = parts_of(shape, name, [pictures[at] for at in starts])
    return [at_moment([part], moment)[0] for part, moment in zip(parts, moments, strict=True)]


def at_moment(parts: Sequence[Part], moment: Moment) -> list[Part]:
    """The parts of one frame, with where it stands in its video."""
    numbers = [f", part {at} of {len(parts)}" if len(parts) > 1 else "" for at in range(1, len(parts) + 1)]
    return [
        replace(part, title=f"{moment.name}, {moment.label}{number}", moment=moment)
        for part, number in zip(parts, numbers, strict=True)
    ]


def is_film(group: Sequence[tuple[T, list[Part]]]) -> bool:
    """Whether media that belong together are a video."""
    return group[0][1][0].moment is not None


def groups_of(media: Sequence[tuple[T, list[Part]]]) -> list[list[tuple[T, list[Part]]]]:
    """Media that belong together, in order: each picture alone, and the frames of each video."""

    def key(numbered: tuple[int, tuple[T, list[Part]]]) -> tuple[bool, int]:
        number, (_, parts) = numbered
        moment = parts[0].moment
        return (False, number) if moment is None else (True, moment.film)

    return [[one for _, one in group] for _, group in groupby(enumerate(media), key)]


def is_tiled(shape: MediumShape) -> bool:
    """Whether each of several grids has an encoder sequence of its own: a tile. Grids that tiles share show the whole image."""
    return len(shape.crops) > 0 and len(shape.encoder_sequences) == len(shape.grids) and not shape.separators


def tile_pictures(
    pixels: Tensor, shapes: Sequence[MediumShape], mean: Sequence[float], std: Sequence[float]
) -> list[Image.Image]:
    """The tiles of all images as the encoder got them, normalisation undone.

    Args:
        pixels: [tiles, 3, H, W] or [1, tiles, 3, H, W], floats.
        shapes: of the images.
        mean, std: [3] that the processor normalised with.

    Returns:
        One picture for each grid of each shape; nothing if pixels and shapes do not have the same number of tiles.
    """
    if pixels.ndim not in (4, 5):
        return []
    tiles = pixels.detach().float().cpu().flatten(0, -4)
    if len(tiles) != sum(len(shape.grids) for shape in shapes):
        return []
    undone = tiles * tiles.new_tensor(list(std))[:, None, None] + tiles.new_tensor(list(mean))[:, None, None]
    bytes_ = (undone.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(tile.numpy()) for tile in bytes_]
