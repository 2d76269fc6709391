"""ViP-LLaVA: LLaVA whose features are those of several CLIP layers side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.shape import ModelShape
from foveate.errors import UnsupportedModel
from foveate.families._base import TINY_TEXT, TINY_VISION
from foveate.families.llava import Llava


class VipLlava(Llava):
    """VipLlavaForConditionalGeneration."""

    model_types = ("vipllava",)
    title = "ViP-LLaVA"
    notes = "one grid per image, features of several CLIP layers"

    def check(self, config: Any) -> None:
        encoder = config.vision_config.model_type
        if encoder != "clip_vision_model":
            raise UnsupportedModel(
                f"ViP-LLaVA with a '{encoder}' encoder: it always cuts the first token, which is a patch where there is no "
                "class token, as CLIP has one"
            )

    def model_shape(self, config: Any) -> ModelShape:
        return replace(super().model_shape(config), family="vipllava")

    def tiny_config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig

        config = VipLlavaConfig(
            vision_config=CLIPVisionConfig(**TINY_VISION, num_hidden_layers=4),
            text_config=LlamaConfig(**TINY_TEXT, num_hidden_layers=5),
            image_token_index=90,
            image_seq_length=36,
        )
        config.vision_feature_layers = [-2, -3, 1]
        return config
