"""Llama 4: images in tiles, chunked layers and full ones without rotary positions, experts."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, EncoderShape, LayerShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, Family, TinyMedium

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Most tiles of an image besides the overview, by the default of the image processor.
_MOST_TILES = 16
# Tiles (high, wide) of the images of tiny models, and the text tokens between tiles and in front of the overview.
_TINY_TILES = ((1, 2), (1, 1), (2, 1))
_BESIDE, _BELOW, _OVERVIEW = 94, 95, 96


class Llama4(Family):
    """Llama4ForConditionalGeneration."""

    model_types = ("llama4",)
    title = "Llama 4"
    beams = False
    base = ""
    decoder = "language_model.model"
    host_inputs = ("input_ids",)
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its encoder rotates all tiles by one table, so they cannot keep different patches: "
        "choose in the language model (site=pre_llm or layer=k)",
    }
    notes = "images in tiles, chunked layers, full layers without rotary positions, experts"
    broken_in = {(5, 24): "its forward asks the language model's output for 'image_outputs', which that has not"}

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        pixels, tokens = inputs.get("pixel_values"), self._tile(config)[1] ** 2
        if pixels is not None and len(pixels) * tokens > columns["image"]:
            raise InputError(
                f"pixel values of {len(pixels)} tiles, but {columns['image']} image placeholder tokens; a tile fills {tokens}: "
                "let the model's own processor expand the prompt"
            )
        if not columns["image"]:
            return {"image": []}
        ids = inputs.get("input_ids")
        if ids is None:
            raise InputError("the tiles of an image are told by the tokens between them: pass input_ids, not embeddings")
        counts = [count for row in ids for count in _columns_by_image(config, row)]
        odd = next((count for count in counts if count % tokens), None)
        if odd is not None:
            raise InputError(
                f"an image with {odd} placeholder tokens, no multiple of the {tokens} that one tile fills; let the model's own "
                "processor expand the prompt"
            )
        if sum(counts) != columns["image"]:
            raise InputError(f"the images of input_ids fill {sum(counts)} columns, but {columns['image']} are placeholders")
        return {"image": [self._image(config, count // tokens) for count in counts]}

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        tiles = [_tiles(size, config.vision_config.image_size) for size in sizes]
        return [self._image(config, count + 1 if count > 1 else 1) for count in tiles]

    def _tile(self, config: Any) -> tuple[int, int]:
        """Patches and visual tokens along the side of a tile."""
        vision = config.vision_config
        patches = vision.image_size // vision.patch_size
        return patches, int(patches * vision.pixel_shuffle_ratio)

    def _image(self, config: Any, tiles: int) -> MediumShape:
        patches, side = self._tile(config)
        inside = patches**2 + 1  # and a class token
        grid = (1, side, side)
        return MediumShape(
            "image", grid, encoder_tokens=tiles * inside, encoder_sequences=(inside,) * tiles, crops=(grid,) * (tiles - 1)
        )

    def refuse_length(self, config: Any, columns: int) -> str | None:
        text = config.get_text_config()
        if not text.attn_temperature_tuning or all(text.no_rope_layers) or columns < text.floor_scale:
            return None
        return (
            f"a prompt of {columns} tokens: from {text.floor_scale} on this model weighs attention by a token's place among "
            f"those that reach a layer, which dropping would change; shorten the prompt, or use effect=mask"
        )

    def decoder_windows(self, config: Any) -> tuple[int | None, ...]:
        # A token of a chunked layer sees its own chunk only: at most as many tokens as a window of that size.
        text = config.get_text_config()
        return tuple(text.attention_chunk_size if kind == "chunked_attention" else None for kind in text.layer_types)

    def decoder_shape(self, config: Any) -> DecoderShape:
        text, shape = config.get_text_config(), super().decoder_shape(config)
        dense = LayerShape(shape.kv_heads, shape.head_dim, text.intermediate_size_mlp)
        # transformers runs every expert for every token and weighs most by zero; one more expert is shared by all tokens.
        width = (text.num_local_experts + 1) * text.intermediate_size
        sparse = replace(dense, intermediate=width, other_weights=text.hidden_size * text.num_local_experts)
        layers = tuple(sparse if layer in text.moe_layers else dense for layer in range(shape.layers))
        return replace(shape, intermediate=layers[-1].intermediate, layer_shapes=layers)

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        encoder = EncoderShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_attention_heads,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            prefix_tokens=1,
        )
        projector = (
            LinearShape(vision.intermediate_size, vision.projector_input_dim),
            LinearShape(vision.projector_output_dim, vision.projector_output_dim),
            LinearShape(vision.vision_output_dim, text.hidden_size),
        )
        return ModelShape(family="llama4", decoder=self.decoder_shape(config), encoder=encoder, projector=projector)

    def tiny_config(self) -> Any:
        from transformers import Llama4Config

        text = dict(
            **TINY_TEXT,
            num_hidden_layers=5,
            head_dim=8,
            intermediate_size_mlp=64,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            no_rope_layer_interval=2,
            attention_chunk_size=24,
        )
        # Pixel shuffle puts 2 x 2 patches side by side, which have the width of the encoder's MLP.
        own = dict(image_size=32, intermediate_size=128, num_hidden_layers=2)
        vision = {**TINY_VISION, **own, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
        return Llama4Config(
            text_config=text, vision_config=vision, image_token_index=90, boi_token_index=92, eoi_token_index=93
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        side = config.vision_config.image_size
        high, wide = _TINY_TILES[number % len(_TINY_TILES)]
        tile = [self.placeholder_ids(config)[kind]] * self._tile(config)[1] ** 2
        ids = [config.boi_token_index]
        if high * wide > 1:
            row = [token for _ in range(wide) for token in (*tile, _BESIDE)][:-1]
            ids += [*row, _BELOW] * high
        ids += [_OVERVIEW, *tile, config.eoi_token_index]
        tiles = high * wide + 1 if high * wide > 1 else 1
        return TinyMedium(kind, torch.tensor(ids), {"pixel_values": torch.randn(tiles, 3, side, side, generator=random)})


def _columns_by_image(config: Any, ids: Tensor) -> list[int]:
    """Placeholder columns of each image of a row [S]: images begin with their own token."""
    import torch

    number = (ids == config.boi_token_id).cumsum(0)
    counts = torch.bincount(number[ids == config.image_token_id]).tolist()
    if counts and counts[0]:
        raise InputError(f"{counts[0]} image placeholder tokens stand in front of the first start-of-image token")
    return [count for count in counts[1:] if count]


def _tiles(size: tuple[int, int], side: int) -> int:
    """Tiles of an image: of the smallest canvas that enlarges it least, or that shrinks it least where all shrink it."""
    width, height = size
    if min(size) < 1:
        raise InputError(f"image of {width} x {height} pixels: both sides are at least 1")
    counts = range(1, _MOST_TILES + 1)
    canvases = [(high, wide) for high in counts for wide in counts if high * wide <= _MOST_TILES]
    scales = [min(_single(high * side / height), _single(wide * side / width)) for high, wide in canvases]
    chosen = min((scale for scale in scales if scale >= 1), default=max(scales))
    return min(high * wide for (high, wide), scale in zip(canvases, scales, strict=True) if scale == chosen)


def _single(value: float) -> float:
    """In single precision, as the image processor computes: equal scales are what it compares."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
