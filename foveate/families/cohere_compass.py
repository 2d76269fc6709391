"""Cohere Compass (North Micro Vision): Qwen3-VL's encoder and DeepStack; a Command decoder with sliding and full layers."""

from __future__ import annotations

from typing import Any

from foveate.families._base import TINY_TEXT
from foveate.families.qwen2_5_vl import TINY_IDS
from foveate.families.qwen3_vl import Qwen3VL


class CohereCompass(Qwen3VL):
    """CohereCompassForConditionalGeneration."""

    model_types = ("cohere_compass",)
    title = "Cohere Compass"
    notes = "as Qwen3-VL, with sliding layers and full ones that may lack rotary positions"

    def rotates(self, config: Any, layer: int) -> bool:
        text = config.get_text_config()
        return text.rope_parameters.get(text.layer_types[layer]) is not None

    def tiny_config(self) -> Any:
        from transformers import CohereCompassConfig

        kinds = ["sliding_attention", "full_attention", "sliding_attention"] * 2
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        text = dict(**TINY_TEXT, num_hidden_layers=6, head_dim=8, sliding_window=24, layer_types=kinds)
        text |= dict(rope_parameters={"sliding_attention": rope, "full_attention": None})
        return CohereCompassConfig(text_config=text, vision_config=self._tiny_vision(), tie_word_embeddings=False, **TINY_IDS)
