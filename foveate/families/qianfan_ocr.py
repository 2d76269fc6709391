"""Qianfan-OCR: InternVL with a Qwen3 decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.shape import ModelShape
from foveate.families._base import TINY_TEXT
from foveate.families.internvl import InternVL


class QianfanOcr(InternVL):
    """QianfanOCRForConditionalGeneration."""

    model_types = ("qianfan_ocr",)
    title = "Qianfan-OCR"
    notes = "images in tiles with a thumbnail, pixel shuffle"

    def model_shape(self, config: Any) -> ModelShape:
        return replace(super().model_shape(config), family="qianfan_ocr")

    def tiny_config(self) -> Any:
        from transformers import QianfanOCRConfig, Qwen3Config

        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2)
        return QianfanOCRConfig(
            text_config=Qwen3Config(**TINY_TEXT, num_hidden_layers=5, head_dim=8),
            vision_config={**vision, "image_size": 24, "patch_size": 4},
            image_token_id=90,
            image_seq_length=9,
            tie_word_embeddings=False,
        )
