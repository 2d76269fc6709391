"""Families that cut an image into square tiles of one size and say only in `input_ids` which tiles make one image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import MediumShape
from foveate.errors import InputError, UnsupportedCombination
from foveate.families._base import Family, TinyMedium

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Tiles of the images of tiny models: with a thumbnail, one tile alone, many.
_TINY_TILES = (3, 1, 5)


class TiledFamily(Family):
    """A family whose pixel values are [tiles, 3, height, width] of all images of a call, tile after tile.

    Each tile is a part of its image with a grid of its own; how the tiles lie beside each other is not known to the model.
    """

    host_inputs = ("input_ids",)

    @abstractmethod
    def tile(self, config: Any) -> MediumShape:
        """The shape of an image of one tile."""

    @abstractmethod
    def tiles_of_size(self, config: Any, width: int, height: int) -> int:
        """Tiles, a thumbnail included, of an image of this size in pixels after default preprocessing."""

    def tiles_of_images(self, ids: Tensor, starts: list[int], ends: list[int], tokens: int) -> list[int]:
        """Tiles of each image of a prompt [S] with runs of placeholders at `starts`, which end at `ends`; one run each."""
        return [(end - start) // tokens for start, end in zip(starts, ends, strict=True)]

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        ids, pixels = inputs.get("input_ids"), inputs.get("pixel_values")
        if not columns["image"]:
            return {"image": []}
        if ids is None:
            raise InputError(f"{self.title} tells only in input_ids which tiles make one image: pass them, not inputs_embeds")
        tiles = [count for row in ids.cpu() for count in self._row(config, row)]
        if pixels is not None and sum(tiles) != len(pixels):
            raise InputError(
                f"the prompt has placeholders for {sum(tiles)} tiles of images, but pixel values for {len(pixels)} are given"
            )
        return {"image": [self._image(config, count) for count in tiles]}

    def _row(self, config: Any, ids: Tensor) -> list[int]:
        """Tiles of each image of one prompt [S]."""
        import torch

        tokens = self.tile(config).tokens
        edges = torch.diff(
            (ids == self.placeholder_ids(config)["image"]).int(),
            prepend=torch.zeros(1, dtype=torch.float32, device="cpu"),
            append=torch.zeros(1, dtype=torch.float32, device="cpu"),
        )
        starts, ends = (torch.nonzero(edges == step).flatten().tolist() for step in (1, -1))
        for start, end in zip(starts, ends, strict=True):
            if (end - start) % tokens:
                raise InputError(
                    f"a tile of an image fills {tokens} image placeholder tokens, but {end - start} follow each other; "
                    "let the model's own processor expand the prompt"
                )
        return self.tiles_of_images(ids, starts, ends, tokens)

    def _image(self, config: Any, tiles: int) -> MediumShape:
        one = self.tile(config)
        return replace(
            one,
            crops=(one.grid,) * (tiles - 1),
            encoder_tokens=one.encoder_tokens * tiles,
            encoder_sequences=one.encoder_sequences * tiles,
            encoder_windows=one.encoder_windows * tiles,
        )

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        for width, height in sizes:
            if min(width, height) < 1:
                raise InputError(f"image of {width} x {height} pixels: sides are at least 1")
        return [self._image(config, self.tiles_of_size(config, *size)) for size in sizes]

    @abstractmethod
    def tiny_ids(self, run: list[int], tiles: int) -> list[int]:
        """What the processor writes for an image of so many tiles, each a `run` of placeholders; brackets are 92 and more."""

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        tiles, side = _TINY_TILES[number % len(_TINY_TILES)], config.vision_config.image_size
        side = side if isinstance(side, int) else side[0]
        ids = self.tiny_ids([self.placeholder_ids(config)[kind]] * self.tile(config).tokens, tiles)
        return TinyMedium(kind, torch.tensor(ids), {"pixel_values": torch.randn(tiles, 3, side, side, generator=random)})


def groups(together: Sequence[bool]) -> list[int]:
    """Sizes of groups of neighbours: `together[i]` says whether i and i + 1 belong together."""
    sizes = [1]
    for joined in together:
        if joined:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def nearest_aspect(width: int, height: int, tile: int, most: int, side: int | None = None) -> int:
    """Tiles, a thumbnail included, where tiles are laid out in the aspect ratio nearest to the image's (GOT-OCR's rule).

    `most` tiles in all, at most `side` of them beside or above each other.
    """
    longest = most if side is None else min(most, side)
    layouts = [(across, down) for across in range(1, longest + 1) for down in range(1, min(longest, most // across) + 1)]
    layouts.sort(key=lambda layout: layout[0] * layout[1])
    best, nearest = 1, float("inf")
    for across, down in layouts:
        distance = abs(width / height - across / down)
        # Of equally near layouts the larger one, unless it has more than twice the pixels of the image.
        if distance < nearest or (distance == nearest and width * height > 0.5 * tile**2 * across * down):
            best, nearest = across * down, distance
    return best + 1 if best > 1 else 1


def refuse_video(title: str, tokens: int) -> UnsupportedCombination:
    """Why a video is no medium where its frames are images."""
    return UnsupportedCombination(
        f"{title} sees each frame of a video as an image of its own, of {tokens} visual tokens; "
        "there is no medium that is a video"
    )
