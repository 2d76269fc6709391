"""LFM2-VL: a hybrid of short convolutions and attention; images of any size, large ones as tiles and a small copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, LayerShape, LinearShape, MediumShape, ModelShape, StateShape
from foveate.errors import InputError
from foveate.families._base import TINY_TEXT, TINY_VISION, Family, TinyMedium

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Of the image processor, as its class has them.
_LEAST_TOKENS, _MOST_TOKENS, _TILE, _FEWEST_TILES, _MOST_TILES, _TOLERANCE = 64, 256, 512, 2, 10, 2.0
# Tiles (height, width) in patches of the images of tiny models: one, two with a small copy, a smaller one.
_TINY_TILES = (((4, 6),), ((4, 4), (4, 4), (2, 6)), ((4, 4),))
_TINY_PATCHES = 24
_START, _MARKER, _END = 92, 93, 94


class Lfm2VL(Family):
    """Lfm2VlForConditionalGeneration. Tiles stand in raster order, each behind a marker; the small copy comes last."""

    model_types = ("lfm2_vl",)
    title = "LFM2-VL"
    host_inputs = ("input_ids", "spatial_shapes")
    notes = "hybrid: short convolutions see survivors only; images of any size, large ones in tiles, pixel unshuffle"

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        ids, sizes, pixels = inputs.get("input_ids"), inputs.get("spatial_shapes"), inputs.get("pixel_values")
        if not columns["image"]:
            return {"image": []}
        if ids is None or sizes is None:
            raise InputError(
                f"{self.title} tells which tiles make one image by input_ids and spatial_shapes: pass everything the processor "
                "returned"
            )
        factor = config.downsample_factor
        tiles = [(int(high) // factor, int(wide) // factor) for high, wide in sizes.tolist()]
        patches = _MOST_TOKENS * factor**2 if pixels is None else int(pixels.shape[1])
        shapes, first = [], 0
        for row in ids.cpu():
            images, first = self._images(config, row, tiles, first)
            shapes += [self._medium(image, patches) for image in images]
        if first != len(tiles):
            raise InputError(f"the prompt has placeholders for {first} tiles of images, but {len(tiles)} are given")
        return {"image": shapes}

    def _images(
        self, config: Any, ids: Tensor, tiles: Sequence[tuple[int, int]], first: int
    ) -> tuple[list[list[tuple[int, int]]], int]:
        """The tiles of each image of one prompt [S], of which `first` is the first tile; and the number of the next one."""
        images: list[list[tuple[int, int]]] = []
        end = -1
        places = (ids == config.image_token_id).nonzero().flatten().tolist()
        position = 0
        while position < len(places):
            if first == len(tiles):
                raise InputError("the prompt has more image placeholder tokens than its tiles fill")
            high, wide = tiles[first]
            start, stop = places[position], position + high * wide
            if stop > len(places) or places[stop - 1] - start != high * wide - 1:
                raise InputError(
                    f"a tile fills {high * wide} image placeholder tokens in a row, but fewer follow each other; "
                    "let the model's own processor expand the prompt"
                )
            # One marker stands between the tiles of an image, an end and a start between images.
            if images and start - end == 2:
                images[-1].append((high, wide))
            else:
                images.append([(high, wide)])
            end, position, first = places[stop - 1], stop, first + 1
        return images, first

    def _medium(self, tiles: Sequence[tuple[int, int]], patches: int) -> MediumShape:
        """An image of these tiles in visual tokens, each encoded as so many patches, padding included."""
        grids = [(1, high, wide) for high, wide in tiles]
        return MediumShape(
            kind="image",
            grid=grids[-1],
            encoder_tokens=patches * len(tiles),
            encoder_sequences=(patches,) * len(tiles),
            crops=tuple(grids[:-1]),
        )

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        for width, height in sizes:
            if min(width, height) < 1:
                raise InputError(f"image of {width} x {height} pixels: sides are at least 1")
        patch, factor = config.vision_config.patch_size, config.downsample_factor
        patches = max(_MOST_TOKENS * factor**2, (_TILE // patch) ** 2)
        return [self._medium(_tiles(width, height, patch, factor), patches) for width, height in sizes]

    def decoder_shape(self, config: Any) -> DecoderShape:
        text, shape = config.get_text_config(), super().decoder_shape(config)
        attends = LayerShape(shape.kv_heads, shape.head_dim, _intermediate(text))
        convolves, stateful = replace(attends, state=short_convolution(text)), self.stateful_layers(config)
        layers = tuple(convolves if layer in stateful else attends for layer in range(shape.layers))
        return replace(shape, intermediate=attends.intermediate, layer_shapes=layers)

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        encoder = self.encoder_shape(config)
        # Beside its pixels a patch meets the whole table of positions, which is brought to the image's size by a product.
        encoder = replace(encoder, patch_inputs=encoder.patch_inputs + vision.num_patches)
        merged, inner = vision.hidden_size * config.downsample_factor**2, config.projector_hidden_size
        return ModelShape(
            family=self.model_types[0],
            decoder=self.decoder_shape(config),
            encoder=encoder,
            projector=(LinearShape(merged, inner), LinearShape(inner, text.hidden_size)),
        )

    def tiny_config(self) -> Any:
        from transformers import Lfm2VlConfig

        kinds = ["conv", "full_attention", "conv", "conv", "full_attention", "conv"]
        text = dict(**TINY_TEXT, model_type="lfm2", num_hidden_layers=6, layer_types=kinds, block_auto_adjust_ff_dim=False)
        own = {name: value for name, value in TINY_VISION.items() if name != "image_size"}
        vision = dict(**own, model_type="siglip2_vision_model", num_hidden_layers=2, num_patches=16, vision_use_head=False)
        return Lfm2VlConfig(text_config=text, vision_config=vision, projector_hidden_size=64, image_token_id=90)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        tiles, factor = _TINY_TILES[number % len(_TINY_TILES)], config.downsample_factor
        ids = [_START]
        for high, wide in tiles:
            ids += [_MARKER] * (len(tiles) > 1) + [config.image_token_id] * (high * wide // factor**2)
        width = 3 * config.vision_config.patch_size**2
        counts = torch.tensor([high * wide for high, wide in tiles])
        mask = (torch.arange(_TINY_PATCHES)[None] < counts[:, None]).int()
        pixels = torch.randn(len(tiles), _TINY_PATCHES, width, generator=random) * mask[..., None]
        inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(tiles)}
        return TinyMedium(kind, torch.tensor([*ids, _END]), inputs)


def short_convolution(text: Any) -> StateShape:
    """In: two gates and what is convolved. Out: one projection."""
    width, kernel = text.hidden_size, text.conv_L_cache
    return StateShape(4 * width * width, convolution=width * kernel, recurrence=0, held=width * kernel, held_fp32=0)


def _intermediate(text: Any) -> int:
    """Width of the gated MLP."""
    if not text.block_auto_adjust_ff_dim:
        return int(text.intermediate_size)
    width = int(2 * text.intermediate_size / 3)
    if text.block_ffn_dim_multiplier is not None:
        several = text.block_multiple_of
        width = several * -(-int(text.block_ffn_dim_multiplier * width) // several)
    return width


def _tiles(width: int, height: int, patch: int, factor: int) -> list[tuple[int, int]]:
    """Tiles (height, width) in visual tokens of an image of this size in pixels, by the processor's rules."""
    unit = patch * factor
    most, least = _MOST_TOKENS * unit**2, _LEAST_TOKENS * unit**2
    near = [round(side / unit) * unit for side in (height, width)]
    high, wide = (max(unit, side) for side in near)
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high, wide = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        high, wide = (math.ceil(side * grow / unit) * unit for side in (height, width))
    whole = (high // unit, wide // unit)
    if max(patch, near[0]) * max(patch, near[1]) <= most * _TOLERANCE:
        return [whole]
    across, down = _layout(width, height)
    side = -(-(_TILE // patch) // factor)
    return [(side, side)] * (across * down) + [whole] * (across * down > 1)


def _layout(width: int, height: int) -> tuple[int, int]:
    """Tiles beside and above each other whose aspect ratio is nearest to the image's; of equally near ones rather more."""
    layouts = {
        (across, down)
        for count in range(_FEWEST_TILES, _MOST_TILES + 1)
        for across in range(1, count + 1)
        for down in range(1, count + 1)
        if _FEWEST_TILES <= across * down <= _MOST_TILES
    }
    best, nearest = (1, 1), float("inf")
    for across, down in sorted(layouts, key=lambda layout: layout[0] * layout[1]):
        distance = abs(width / height - across / down)
        larger = width * height > 0.5 * _TILE**2 * across * down
        if distance < nearest or (distance == nearest and larger):
            best, nearest = (across, down), distance
    return best
