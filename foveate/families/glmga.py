"""GLM-GA: the classes of GLM-4.6V under a model type of its own, and longer videos."""

from __future__ import annotations

from typing import Any

from foveate.families.glm46v import Glm46V
from foveate.families.qwen2_5_vl import TINY_MROPE_TEXT


class Glmga(Glm46V):
    """Glm46VForConditionalGeneration with a GlmgaConfig."""

    model_types = ("glmga",)
    title = "GLM-GA"
    notes = "as GLM-4.6V"
    video_pixels = (12_544, 87_478_720)

    def tiny_config(self) -> Any:
        from transformers import GlmgaConfig

        return GlmgaConfig(text_config={**TINY_MROPE_TEXT, "model_type": "glm4v_text"}, **self._tiny_parts())
