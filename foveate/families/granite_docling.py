"""Granite Docling: Idefics3's tiles of a page, each behind its marker, with features added between layers (DeepStack)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError, UnsupportedModel
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, StackedFeatures, TinyMedium
from foveate.families._tiles import groups, nearest_aspect
from foveate.families.idefics3 import Idefics3

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Most tiles of a page without the small copy, in all and along one side: defaults of the image processor.
_MOST_TILES, _MOST_BESIDE = 32, 16
_TINY_LAYOUTS = ((1, 2), (1, 1), (2, 1), (2, 2))
_AROUND, _WHOLE, _NEWLINE, _FIRST_CELL = 92, 93, 94, 95


class GraniteDocling(Idefics3):
    """GraniteDoclingForConditionalGeneration. A page of one tile has no small copy, and nothing closes it."""

    model_types = ("granite_docling",)
    title = "Granite Docling"
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "pages are shuffled coarse or fine, by the call, and features added between layers are shuffled "
        "apart: choose in the language model (site=pre_llm or layer=k)",
    }
    notes = "pages in tiles and as a whole, coarse or fine, DeepStack, pixel shuffle"

    def check(self, config: Any) -> None:
        layers = config.get_text_config().num_hidden_layers
        if len(config.vision_config.deepstack_visual_indexes) >= layers:
            raise UnsupportedModel(f"DeepStack features after each of all {layers} layers: nothing runs after the last one")

    def stacked_features(self, config: Any) -> StackedFeatures:
        layers = len(config.vision_config.deepstack_visual_indexes)
        return StackedFeatures("deepstack_visual_embeds", "visual_pos_masks", layers)

    def encoder(self, config: Any) -> None:
        return None

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        if inputs.get("tile_fine_mask") is not None:  # there or not: transformers reads no value of it
            config = deepcopy(config)
            config.vision_config.scale_factor //= 2
        return super().media(config, inputs, columns)

    def _images(self, ids: Tensor, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
        # In front of each tile stands the marker of its place, one token. That of an image's first tile begins a new one.
        markers = [int(ids[start - 1]) if start else None for start in starts]
        return groups([marker != markers[0] for marker in markers[1:]]) if markers else []

    def _tile(self, config: Any) -> tuple[int, int]:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        return side // vision.scale_factor, side

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        for width, height in sizes:
            if min(width, height) < 1:
                raise InputError(f"image of {width} x {height} pixels: sides are at least 1")
        tile = config.vision_config.image_size
        return [self._medium(config, nearest_aspect(*size, tile, _MOST_TILES, _MOST_BESIDE)) for size in sizes]

    def model_shape(self, config: Any) -> ModelShape:
        vision, out = config.vision_config, config.vision_config.out_hidden_size
        merged = LinearShape(vision.hidden_size * vision.scale_factor**2, out)
        inner = LinearShape(out, out)
        return ModelShape(
            family=self.model_types[0],
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(merged, inner) * (1 + len(vision.deepstack_visual_indexes)),
        )

    def tiny_config(self) -> Any:
        from transformers import GraniteDoclingConfig

        text = dict(**TINY_TEXT, num_hidden_layers=5, embedding_multiplier=2.0, attention_multiplier=0.5)
        vision = dict(**TINY_VISION, num_hidden_layers=3, out_hidden_size=32, scale_factor=2, deepstack_visual_indexes=[0, 1])
        return GraniteDoclingConfig(text_config=text, vision_config=vision, image_token_id=90, tie_word_embeddings=False)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        rows, columns = _TINY_LAYOUTS[number % len(_TINY_LAYOUTS)]
        run = [config.image_token_id] * self._tile(config)[0] ** 2
        ids: list[int] = []
        for row in range(rows):
            for column in range(columns):
                ids += [_AROUND, _FIRST_CELL + row * columns + column, *run]
            ids += [_NEWLINE]
        split = rows * columns > 1
        if split:
            ids += [_NEWLINE, _AROUND, _WHOLE, *run, _AROUND]
        side = config.vision_config.image_size
        pixels = torch.randn(rows * columns + split, 3, side, side, generator=random)
        return TinyMedium(kind, torch.tensor(ids), {"pixel_values": pixels})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        """Tiles by prompt, filled up with black ones [B, tiles, 3, height, width], and which of them there are [B, tiles]."""
        inputs = super().tiny_batch(config, ids, media)
        if "pixel_attention_mask" in inputs:
            inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"][:, :, 0, 0].bool()
        return inputs
