"""SmolVLM and SmolVLM2: Idefics3 with smaller decoders; the frames of a video are images of one tile each."""

from __future__ import annotations

from typing import Any

from foveate.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    """SmolVLMForConditionalGeneration."""

    model_types = ("smolvlm",)
    title = "SmolVLM"
    notes = "images in tiles and as a whole, pixel shuffle, frames of a video are images"

    def tiny_config(self) -> Any:
        from transformers import SmolVLMConfig

        return SmolVLMConfig(**self._tiny_parts())
