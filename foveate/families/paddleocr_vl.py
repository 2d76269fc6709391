"""PaddleOCR-VL: pages of any size, packed encoder, 2 x 2 merger behind the encoder, M-RoPE; no video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.core.shape import MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TINY_VISION, Family, TinyMedium
from foveate.families._resize import resized
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT
from foveate.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

# Patches (t, h, w) of the images of tiny models.
_TINY_GRIDS = ((1, 8, 8), (1, 8, 12), (1, 4, 8))


class PaddleOCRVL(Qwen2VL):
    """PaddleOCRVLForConditionalGeneration."""

    model_types = ("paddleocr_vl",)
    title = "PaddleOCR-VL"
    placeholders = {"image": "image_token_id"}
    host_inputs = ("image_grid_thw",)
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its merger stands behind the encoder and needs all patches of the picture in raster order",
    }
    notes = "images of any size, M-RoPE, packed encoder"
    pixels = (147_456, 2_359_296)  # of the image processor's class

    def encoder(self, config: Any) -> None:
        return None

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        patch = config.vision_config.patch_size
        unit = patch * config.vision_config.spatial_merge_size
        grids = [resized(_enlarged(size, unit), unit, self.pixels) for size in sizes]
        return [self._medium(config, "image", (1, high // patch, wide // patch)) for high, wide in grids]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        return Family.media_of_video(self, config, size, frames)

    def model_shape(self, config: Any) -> ModelShape:
        vision, encoder = config.vision_config, self.encoder_shape(config)
        merger = self._merger(vision, encoder, config.get_text_config().hidden_size)
        return ModelShape(family="paddleocr_vl", decoder=self.decoder_shape(config), encoder=encoder, projector=merger)

    def tiny_config(self) -> Any:
        from transformers import PaddleOCRVLConfig

        text = {**TINY_MROPE_TEXT, "head_dim": 8}
        vision = dict(**TINY_VISION, num_hidden_layers=2, spatial_merge_size=2)
        return PaddleOCRVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **TINY_IDS)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        t, h, w = _TINY_GRIDS[number % len(_TINY_GRIDS)]
        side = config.vision_config.patch_size
        pixels = torch.randn(t * h * w, 3, side, side, generator=random)
        ids = torch.full((t * h * w // config.vision_config.spatial_merge_size**2,), config.image_token_id)
        return TinyMedium(kind, ids, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[t, h, w]])})


def _enlarged(size: tuple[int, int], unit: int) -> tuple[int, int]:
    """(width, height) of an image whose shorter side is brought up to `unit` first, with the processor's rounding."""
    width, height = size
    if min(size) < 1:
        raise InputError(f"{width} x {height} pixels: both sides are at least 1")
    if height < unit:
        width, height = round(width * unit / height), unit
    if width < unit:
        width, height = unit, round(height * unit / width)
    return width, height
