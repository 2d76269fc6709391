"""GLM-OCR: GLM-4.1V with a small decoder; the MLPs of its encoder and of its merger have widths of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.shape import LinearShape, ModelShape, RowsPer
from foveate.families.glm4v import Glm4v
from foveate.families.qwen2_5_vl import TINY_MROPE_TEXT


class GlmOcr(Glm4v):
    """GlmOcrForConditionalGeneration."""

    model_types = ("glm_ocr",)
    title = "GLM-OCR"
    notes = "as GLM-4.1V, small"

    def model_shape(self, config: Any) -> ModelShape:
        vision, shape = config.vision_config, super().model_shape(config)
        out, inner = vision.out_hidden_size, vision.out_hidden_size * vision.in_channels
        widths = ((out, inner), (out, inner), (inner, out))
        merger = (*shape.projector[:2], *(LinearShape(*pair, RowsPer.LEFT) for pair in widths))
        return replace(shape, encoder=replace(shape.encoder, intermediate=vision.intermediate_size), projector=merger)

    def tiny_config(self) -> Any:
        from transformers import GlmOcrConfig

        return GlmOcrConfig(text_config={**TINY_MROPE_TEXT}, **self._tiny_parts())
