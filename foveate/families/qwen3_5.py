"""Qwen3.5: a hybrid. Three of four decoder layers are gated delta networks, which carry a state; the fourth attends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from foveate.core.shape import DecoderShape, LayerShape, StateShape
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT
from foveate.families.qwen3_vl import Qwen3VL

# Layers with a state in front of, between and behind those that attend.
TINY_HYBRID_TEXT: Mapping[str, Any] = {
    **TINY_MROPE_TEXT,
    "num_hidden_layers": 6,
    "layer_types": [
        "linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention",
    ],
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {**TINY_MROPE_TEXT["rope_parameters"], "partial_rotary_factor": 1.0},
}  # fmt: skip


class Qwen35(Qwen3VL):
    """Qwen3_5ForConditionalGeneration."""

    model_types = ("qwen3_5",)
    title = "Qwen3.5"
    notes = "hybrid: layers with a state see survivors only, and remember what a gate forgets; images and video, M-RoPE"

    def check(self, config: Any) -> None:
        """Nothing is added between layers here, so nothing can be too much."""

    def stacked_features(self, config: Any) -> None:  # type: ignore[override]
        return None

    def decoder_shape(self, config: Any) -> DecoderShape:
        return with_delta_nets(config.get_text_config(), super().decoder_shape(config), self.stateful_layers(config))

    def tiny_config(self) -> Any:
        from transformers import Qwen3_5Config

        return Qwen3_5Config(text_config={**TINY_HYBRID_TEXT}, vision_config=self._tiny_vision(), **TINY_IDS)

    def _tiny_vision(self) -> dict[str, Any]:
        vision = super()._tiny_vision()
        del vision["deepstack_visual_indexes"]
        return vision


def with_delta_nets(text: Any, shape: DecoderShape, stateful: Collection[int]) -> DecoderShape:
    """The decoder `shape` of which the `stateful` layers are gated delta networks, and the others attend."""
    # The attention's output passes a gate of the queries' width.
    gate = shape.hidden * shape.heads * shape.head_dim
    attends = LayerShape(shape.kv_heads, shape.head_dim, shape.intermediate, other_weights=gate)
    remembers = replace(attends, other_weights=0, state=_delta_net(text))
    return replace(shape, layer_shapes=tuple(remembers if layer in stateful else attends for layer in range(shape.layers)))


def _delta_net(text: Any) -> StateShape:
    """A gated delta network: projections to q, k, v, an output gate z and two numbers per head; a convolution over q, k, v."""
    heads, key, value = text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim
    convolved = 2 * text.linear_num_key_heads * key + heads * value
    kernel = text.linear_conv_kernel_dim
    return StateShape(
        weights=text.hidden_size * (convolved + 2 * heads * value + 2 * heads),
        convolution=convolved * kernel,
        recurrence=3 * heads * key * value,  # read by the key, write the correction, read by the query
        held=convolved * kernel,
        held_fp32=heads * key * value,
    )
