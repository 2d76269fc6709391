"""The parts of images and videos that views draw: whole pictures, crops, frames, each with a grid of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from foveate.core.shape import MediumShape


@dataclass(frozen=True)
class Part:
    """One grid of visual tokens and what it shows.

    Attributes:
        title: as people read it.
        picture: what lies under the grid; None if that is not known.
        rows, columns: sides of the grid in tokens.
        start: number of its first token within the grid tokens of its medium.
    """

    title: str
    picture: Image.Image | None
    rows: int
    columns: int
    start: int

    @property
    def stop(self) -> int:
        """Number behind its last token."""
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
