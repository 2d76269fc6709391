"""MiniCPM-V 4.7: MiniCPM-V 4.6 with M-RoPE; slices stand on the overview's canvas, where they lie in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape
from foveate.families._base import TinyMedium
from foveate.families.minicpmv4_6 import END, NEWLINE, SLICE_END, SLICE_START, START, MiniCPMV46
from foveate.families.qwen3_5 import TINY_HYBRID_TEXT

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


class MiniCPMV47(MiniCPMV46):
    """MiniCPMV4_7ForConditionalGeneration."""

    model_types = ("minicpmv4_7",)
    title = "MiniCPM-V 4.7"
    notes = "as MiniCPM-V 4.6, with M-RoPE: slices on the overview's canvas"

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), all_logits=False)

    def tiny_config(self) -> Any:
        from transformers import MiniCPMV4_7Config

        around = dict(image_start_id=START, image_end_id=END, slice_start_id=SLICE_START, slice_end_id=SLICE_END)
        text = {**TINY_HYBRID_TEXT, "model_type": "qwen3_5_text"}
        return MiniCPMV4_7Config(text_config=text, newline_id=NEWLINE, **around, **self._tiny_parts())

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        return {**super().tiny_batch(config, ids, media), "mm_token_type_ids": types}
