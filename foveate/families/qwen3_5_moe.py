"""Qwen3.5 with experts: in each layer every token passes a router, a few of many small MLPs and one that all tokens share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.shape import DecoderShape
from foveate.families.qwen2_5_vl import TINY_IDS
from foveate.families.qwen3_5 import TINY_HYBRID_TEXT, Qwen35


class Qwen35Moe(Qwen35):
    """Qwen3_5MoeForConditionalGeneration."""

    model_types = ("qwen3_5_moe",)
    title = "Qwen3.5 MoE"
    notes = "as Qwen3.5, with experts"

    def decoder_shape(self, config: Any) -> DecoderShape:
        text, shape = config.get_text_config(), super().decoder_shape(config)
        used = text.num_experts_per_tok * text.moe_intermediate_size + text.shared_expert_intermediate_size
        router = text.hidden_size * (text.num_experts + 1)  # the shared one has a gate too
        layers = tuple(
            replace(layer, intermediate=used, other_weights=layer.other_weights + router) for layer in shape.layer_shapes
        )
        return replace(shape, intermediate=used, layer_shapes=layers)

    def tiny_config(self) -> Any:
        from transformers import Qwen3_5MoeConfig

        experts = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
        text = {**TINY_HYBRID_TEXT, **experts}
        del text["intermediate_size"]
        return Qwen3_5MoeConfig(text_config=text, vision_config=self._tiny_vision(), **TINY_IDS)
