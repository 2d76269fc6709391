"""LightOnOCR: Mistral 3's encoder and merger, a Qwen3 decoder, the tokens of an image in one run without breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, TinyMedium
from foveate.families.mistral3 import Mistral3

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch


class LightOnOcr(Mistral3):
    """LightOnOcrForConditionalGeneration."""

    model_types = ("lighton_ocr",)
    title = "LightOnOCR"
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its merger leaves out an odd last row or column of patches, which belong to no visual token: "
        "choose in the language model (site=pre_llm or layer=k)",
    }
    notes = "images of any size, 2 x 2 merger"

    def encoder(self, config: Any) -> None:
        return None

    def rounding(self, config: Any) -> int:
        # To whole patches, not to whole tokens: the merger leaves out an odd last row or column of patches.
        return int(config.vision_config.patch_size)

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        unit = self.rounding(config) * self.merge(config)
        for width, height in sizes:
            if min(width, height) < 1:
                raise InputError(f"image of {width} x {height} pixels: both sides are at least 1")
        shapes = super().media_of_images(config, sizes)
        for (width, height), shape in zip(sizes, shapes, strict=True):
            if not shape.tokens:
                raise InputError(f"image of {width} x {height} pixels: a side of less than {unit} pixels leaves no token")
        return shapes

    def model_shape(self, config: Any) -> ModelShape:
        return replace(super().model_shape(config), family="lighton_ocr")

    def tiny_config(self) -> Any:
        from transformers import LightOnOcrConfig

        text = dict(**TINY_TEXT, model_type="qwen3", num_hidden_layers=5, head_dim=8)
        vision = dict(**TINY_VISION, model_type="pixtral", num_hidden_layers=2)
        return LightOnOcrConfig(text_config=text, vision_config=vision, image_token_id=90, tie_word_embeddings=False)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        medium = super().tiny_medium(config, kind, number, random)
        return TinyMedium(kind, medium.ids[medium.ids == config.image_token_id], medium.inputs)
