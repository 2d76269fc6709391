"""Cosmos 3's reasoner: Qwen3-VL under a model type of its own; what draws and speaks in its checkpoints is not loaded."""

from __future__ import annotations

from typing import Any

from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT
from foveate.families.qwen3_vl import Qwen3VL


class Cosmos3Omni(Qwen3VL):
    """Cosmos3OmniForConditionalGeneration."""

    model_types = ("cosmos3_omni",)
    title = "Cosmos 3 Omni"
    notes = "as Qwen3-VL"

    def tiny_config(self) -> Any:
        from transformers import Cosmos3OmniConfig

        text = {**TINY_MROPE_TEXT, "head_dim": 8, "model_type": "qwen3_vl_text"}
        return Cosmos3OmniConfig(text_config=text, vision_config=self._tiny_vision(), **TINY_IDS)
