"""MiniCPM-OCR: MiniCPM-V 4.6 for pages, with four times as many tokens unless a call asks for fewer."""

from __future__ import annotations

from typing import Any

from foveate.families.minicpmv4_6 import MiniCPMV46
from foveate.families.qwen3_5 import TINY_HYBRID_TEXT


class MiniCPMOcr(MiniCPMV46):
    """MiniCPMOcrForConditionalGeneration."""

    model_types = ("minicpm_ocr",)
    title = "MiniCPM-OCR"
    notes = "as MiniCPM-V 4.6, four times as many tokens"

    def tiny_config(self) -> Any:
        from transformers import MiniCPMOcrConfig

        return MiniCPMOcrConfig(text_config={**TINY_HYBRID_TEXT, "model_type": "qwen3_5_text"}, **self._tiny_parts())
