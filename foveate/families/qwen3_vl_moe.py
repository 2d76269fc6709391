"""Qwen3-VL with experts: each token passes a router and a few of many small MLPs in most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.core.shape import DecoderShape, LayerShape
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT
from foveate.families.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    """Qwen3VLMoeForConditionalGeneration."""

    model_types = ("qwen3_vl_moe",)
    title = "Qwen3-VL MoE"
    notes = "as Qwen3-VL, with experts"

    def decoder_shape(self, config: Any) -> DecoderShape:
        text, shape = config.get_text_config(), super().decoder_shape(config)
        dense = LayerShape(shape.kv_heads, shape.head_dim, shape.intermediate)
        used, router = text.num_experts_per_tok * text.moe_intermediate_size, text.hidden_size * text.num_experts
        sparse = replace(dense, intermediate=used, other_weights=router)

        def has_experts(layer: int) -> bool:
            return layer not in text.mlp_only_layers and (layer + 1) % text.decoder_sparse_step == 0

        layers = tuple(sparse if has_experts(layer) else dense for layer in range(shape.layers))
        return replace(shape, intermediate=used if sparse in layers else shape.intermediate, layer_shapes=layers)

    def tiny_config(self) -> Any:
        from transformers import Qwen3VLMoeConfig

        experts = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[3])
        text = {**TINY_MROPE_TEXT, **experts, "head_dim": 8}
        return Qwen3VLMoeConfig(text_config=text, vision_config=self._tiny_vision(), **TINY_IDS)
