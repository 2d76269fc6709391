"""HyperCLOVA X Vision 2: Qwen2.5-VL's encoder, one more layer behind its merger, positions that are those of the columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.encoder import PackedPath
from foveate.core.shape import LinearShape, ModelShape
from foveate.families._base import TINY_TEXT
from foveate.families.exaone4_5 import Exaone45
from foveate.families.qwen2_5_vl import TINY_PACKED_VISION, Qwen25VL


class HyperClovaXVision2(Exaone45):
    """HyperCLOVAXVisionV2ForConditionalGeneration."""

    model_types = ("hyperclovax_vision_v2",)
    title = "HyperCLOVA X Vision 2"
    notes = "images and video of any size, windowed packed encoder"

    def rotates(self, config: Any, layer: int) -> bool:
        return True

    def encoder(self, config: Any) -> PackedPath | None:
        path = super().encoder(config)
        return None if path is None else replace(path, tower="model.vision_model")

    def model_shape(self, config: Any) -> ModelShape:
        shape = Qwen25VL.model_shape(self, config)
        projector = LinearShape(config.vision_config.out_hidden_size, config.get_text_config().hidden_size)
        return replace(shape, family="hyperclovax_vision_v2", projector=(*shape.projector, projector))

    def tiny_config(self) -> Any:
        from transformers import HyperCLOVAXVisionV2Config

        text = dict(**TINY_TEXT, model_type="hyperclovax", num_hidden_layers=5)
        own = dict(hidden_size=32, intermediate_size=64, out_hidden_size=24, fullatt_block_indexes=[1, 3], window_size=16)
        vision = {**TINY_PACKED_VISION, **own, "model_type": "qwen2_5_vl_vision"}
        ids = dict(image_token_id=90, video_token_id=91)
        return HyperCLOVAXVisionV2Config(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
