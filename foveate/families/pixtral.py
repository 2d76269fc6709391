"""LLaVA with a Pixtral encoder (Pixtral 12B): images of any size, one token per patch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.shape import LinearShape, ModelShape
from foveate.errors import UnsupportedModel
from foveate.families.mistral3 import Mistral3


class Pixtral(Mistral3):
    """LlavaForConditionalGeneration with a Pixtral encoder."""

    model_types = ("llava",)
    title = "Pixtral"
    notes = "images of any size, break tokens between rows are text"

    def covers(self, config: Any) -> bool:
        return super().covers(config) and config.vision_config.model_type == "pixtral"

    def check(self, config: Any) -> None:
        if config.vision_feature_select_strategy == "default":
            raise UnsupportedModel(
                "vision_feature_select_strategy='default' cuts the first token, which for a Pixtral encoder is a patch and "
                "leaves no grid: checkpoints with Pixtral say 'full'"
            )

    def merge(self, config: Any) -> int:
        return 1

    def model_shape(self, config: Any) -> ModelShape:
        shape, layer = super().model_shape(config), config.vision_feature_layer
        features = config.vision_config.hidden_size * (1 if isinstance(layer, int) else len(layer))
        _, into, out = shape.projector
        return replace(shape, family="pixtral", projector=(LinearShape(features, into.outputs), out))

    def tiny_config(self) -> Any:
        from transformers import LlavaConfig

        return LlavaConfig(**self._tiny_parts(), vision_feature_select_strategy="full")
