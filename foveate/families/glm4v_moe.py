"""GLM-4.5V: GLM-4.1V with experts in most decoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.families.glm4v import Glm4v
from foveate.families.qwen2_5_vl import TINY_MROPE_TEXT

TINY_EXPERTS_TEXT: Mapping[str, Any] = {
    **TINY_MROPE_TEXT,
    "head_dim": 8,
    "rope_parameters": {**TINY_MROPE_TEXT["rope_parameters"], "partial_rotary_factor": 1.0},
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}


class Glm4vMoe(Glm4v):
    """Glm4vMoeForConditionalGeneration."""

    model_types = ("glm4v_moe",)
    title = "GLM-4.5V"
    notes = "as GLM-4.1V, with experts"

    def tiny_config(self) -> Any:
        from transformers import Glm4vMoeConfig

        return Glm4vMoeConfig(text_config={**TINY_EXPERTS_TEXT}, **self._tiny_parts())
