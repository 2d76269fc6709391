"""GLM-4.6V: the decoder of GLM-4.5V or, in the small one, of GLM-4.1V; other ids and timestamps."""

from __future__ import annotations

from typing import Any

from foveate.families.glm4v import Glm4v
from foveate.families.glm4v_moe import TINY_EXPERTS_TEXT


class Glm46V(Glm4v):
    """Glm46VForConditionalGeneration."""

    model_types = ("glm46v",)
    title = "GLM-4.6V"
    notes = "as GLM-4.1V, with or without experts"

    def tiny_config(self) -> Any:
        from transformers import Glm46VConfig

        text = {**TINY_EXPERTS_TEXT, "model_type": "glm4v_moe_text", "first_k_dense_replace": 2}
        return Glm46VConfig(text_config=text, **self._tiny_parts())
