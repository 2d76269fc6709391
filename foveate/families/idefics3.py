"""Idefics3: an image is cut into square tiles in rows, each after a marker, and a small copy of the whole image comes last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError, UnsupportedCombination
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, Family, TinyMedium
from foveate.families.llava import VIT_MIDDLE

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# The longer side of an image in tiles, as the preprocessor configs of the published checkpoints say (4 * 364 for Idefics3).
_TILES_PER_SIDE = 4
# Rows and columns of tiles of the images of tiny models; (0, 0) is an image of one tile.
_TINY_LAYOUTS = ((1, 2), (0, 0), (2, 1), (2, 2))
_AROUND, _WHOLE, _NEWLINE, _FIRST_CELL = 92, 93, 94, 95


class Idefics3(Family):
    """Idefics3ForConditionalGeneration. Tiles stand in raster order; the whole image is the last part."""

    model_types = ("idefics3",)
    title = "Idefics3"
    decoder = "model.text_model"
    host_inputs = ("input_ids",)
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "images in tiles and as a whole, pixel shuffle"

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        ids, pixels = inputs.get("input_ids"), inputs.get("pixel_values")
        if not columns["image"]:
            return {"image": []}
        if ids is None:
            raise InputError(
                f"{self.title} tells which tiles make one image by the markers between them: pass input_ids, not inputs_embeds"
            )
        most = None if pixels is None else pixels.shape[1]
        shapes = []
        for number, row in enumerate(ids.cpu()):
            images = self._tiles_of_images(config, row)
            if most is not None and sum(images) > most:
                raise InputError(
                    f"row {number} has placeholders for {sum(images)} tiles, but pixel values for {most} are given"
                )
            shapes += [self._medium(config, tiles) for tiles in images]
        return {"image": shapes}

    def _tiles_of_images(self, config: Any, ids: Tensor) -> list[int]:
        """How many tiles, the whole image included, each image of one prompt [S] has."""
        import torch

        edges = torch.diff(
            (ids == config.image_token_id).int(),
            prepend=torch.zeros(1, dtype=torch.float32, device="cpu"),
            append=torch.zeros(1, dtype=torch.float32, device="cpu"),
        )
        starts, ends = (torch.nonzero(edges == step).flatten().tolist() for step in (1, -1))
        tokens = self._tile(config)[0] ** 2
        for start, end in zip(starts, ends, strict=True):
            if end - start != tokens:
                raise InputError(
                    f"a tile fills {tokens} image placeholder tokens, but {end - start} follow each other; "
                    "let the model's own processor expand the prompt"
                )
        return self._images(ids, starts, ends)

    def _images(self, ids: Tensor, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        """Which runs of placeholders of a prompt [S], from `starts` to `ends`, make one image: how many in each."""
        # After every image stands <around>, in front of every tile <around> and a marker, and newlines between rows. Which
        # ids these are depends on the checkpoint and stands in no config, so <around> is read off the end of the last image.
        around = ids[ends[-1]] if ends and ends[-1] < len(ids) else None
        images = [1] * bool(starts)
        for end, start in zip(ends, starts[1:], strict=False):
            if around is not None and int((ids[end:start] == around).sum()) == 1:
                images[-1] += 1  # nothing closed the image in between
            else:
                images.append(1)
        return images

    def _tile(self, config: Any) -> tuple[int, int]:
        """Visual tokens and patches along a side of a tile."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side // config.scale_factor, side

    def _medium(self, config: Any, tiles: int) -> MediumShape:
        side, patches = self._tile(config)
        return MediumShape(
            kind="image",
            grid=(1, side, side),
            encoder_tokens=tiles * patches**2,
            encoder_sequences=(patches**2,) * tiles,
            crops=((1, side, side),) * (tiles - 1),
        )

    def encoder(self, config: Any) -> EncoderPath | None:
        side = self._tile(config)[1]
        return EncoderPath(
            towers=("model.vision_model",),
            projector="model.connector",
            grid=(side, side),
            used=config.vision_config.num_hidden_layers,
            unit=config.scale_factor,
            middle=VIT_MIDDLE,
        )

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return [self._medium(config, _tile_count(*size, config.vision_config.image_size)) for size in sizes]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        raise UnsupportedCombination(
            f"{self.title} sees each frame of a video as an image of its own, of {self._tile(config)[0] ** 2} visual tokens; "
            "there is no medium that is a video"
        )

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        return ModelShape(
            family=self.model_types[0],
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(LinearShape(vision.hidden_size * config.scale_factor**2, text.hidden_size),),
        )

    def tiny_config(self) -> Any:
        from transformers import Idefics3Config

        return Idefics3Config(**self._tiny_parts())

    def _tiny_parts(self) -> dict[str, Any]:
        text = dict(**TINY_TEXT, model_type="llama", num_hidden_layers=5)
        return dict(text_config=text, vision_config=dict(**TINY_VISION, num_hidden_layers=2), scale_factor=2, image_token_id=90)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        rows, columns = _TINY_LAYOUTS[number % len(_TINY_LAYOUTS)]
        run = [config.image_token_id] * self._tile(config)[0] ** 2
        ids: list[int] = []
        for row in range(rows):
            for column in range(columns):
                ids += [_AROUND, _FIRST_CELL + row * columns + column, *run]
            ids += [_NEWLINE] * (2 if row == rows - 1 else 1)
        ids += [_AROUND, _WHOLE, *run, _AROUND]
        side = config.vision_config.image_size
        pixels = torch.randn(rows * columns + 1, 3, side, side, generator=random)
        return TinyMedium(kind, torch.tensor(ids), {"pixel_values": pixels})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        """Tiles by prompt, filled up with black images: [B, tiles, 3, height, width]."""
        import torch

        tiles = ((ids == config.image_token_id).sum(1) // self._tile(config)[0] ** 2).tolist()
        if not media:
            return {}
        rows = torch.split(torch.cat([medium.inputs["pixel_values"] for medium in media]), tiles)
        pixels = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        present = torch.arange(max(tiles))[None] < torch.tensor(tiles)[:, None]
        mask = present[:, :, None, None].expand(-1, -1, *pixels.shape[-2:]).long()
        return {"pixel_values": pixels, "pixel_attention_mask": mask}


def _tile_count(width: int, height: int, tile: int) -> int:
    """Tiles of an image of this size, the whole image included; the processor's steps one by one, with its rounding."""
    longest = _TILES_PER_SIDE * tile
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        width, height = int(longest * aspect), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if width >= height:
        across = math.ceil(width / tile)
        down = math.ceil(int(across * tile / aspect) / tile)
    else:
        down = math.ceil(height / tile)
        across = math.ceil(int(down * tile * aspect) / tile)
    return down * across + 1
