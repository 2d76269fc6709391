"""EXAONE 4.5: Qwen2.5-VL's encoder with fewer key heads; sliding layers, and full ones without rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import ModelShape
from foveate.families._base import TINY_TEXT, Family, TinyMedium
from foveate.families.qwen2_5_vl import TINY_PACKED_VISION, Qwen25VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


class Exaone45(Qwen25VL):
    """Exaone4_5_ForConditionalGeneration."""

    model_types = ("exaone4_5",)
    title = "EXAONE 4.5"
    notes = "images and video of any size, windowed packed encoder, sliding layers, full layers without rotary positions"

    def rotates(self, config: Any, layer: int) -> bool:
        # Where no layer slides, all of them rotate.
        return config.get_text_config().sliding_window is None or self.decoder_windows(config)[layer] is not None

    def model_shape(self, config: Any) -> ModelShape:
        shape = super().model_shape(config)
        encoder = replace(shape.encoder, kv_heads=config.vision_config.num_key_value_heads)
        return replace(shape, family="exaone4_5", encoder=encoder)

    def tiny_config(self) -> Any:
        from transformers import Exaone4_5_Config

        kinds = ["sliding_attention", "full_attention", "sliding_attention"] * 2
        text = dict(**TINY_TEXT, model_type="exaone4", num_hidden_layers=6, sliding_window=24, layer_types=kinds)
        own = dict(hidden_size=32, intermediate_size=64, out_hidden_size=32, fullatt_block_indexes=[1, 3], window_size=16)
        vision = {**TINY_PACKED_VISION, **own, "num_key_value_heads": 2}
        return Exaone4_5_Config(text_config=text, vision_config=vision, image_token_id=90, video_token_id=91)

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        return Family.tiny_batch(self, config, ids, media)  # positions are those of the columns: nothing tells of kinds
