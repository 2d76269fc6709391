"""Qwen2-VL: any image size, packed encoder without windows, 2 x 2 merger, M-RoPE, video."""

from __future__ import annotations

from typing import Any

from foveate.core.shape import EncoderShape, MediumShape, ModelShape
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT, TINY_PACKED_VISION, Qwen25VL


class Qwen2VL(Qwen25VL):
    """Qwen2VLForConditionalGeneration."""

    model_types = ("qwen2_vl",)
    title = "Qwen2-VL"
    notes = "images and video of any size, M-RoPE, packed encoder"

    def _medium(self, config: Any, kind: str, patches: tuple[int, int, int]) -> MediumShape:
        merge = config.vision_config.spatial_merge_size
        t, h, w = patches
        return MediumShape(kind, (t, h // merge, w // merge), encoder_tokens=t * h * w, encoder_sequences=(h * w,) * t)

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        encoder = EncoderShape(
            layers=vision.depth,
            hidden=vision.embed_dim,
            intermediate=int(vision.embed_dim * vision.mlp_ratio),
            heads=vision.num_heads,
            patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        )
        merger = self._merger(vision, encoder, vision.hidden_size)
        return ModelShape(family="qwen2_vl", decoder=self.decoder_shape(config), encoder=encoder, projector=merger)

    def tiny_config(self) -> Any:
        from transformers import Qwen2VLConfig

        vision = {**TINY_PACKED_VISION, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        return Qwen2VLConfig(text_config={**TINY_MROPE_TEXT}, vision_config=vision, **TINY_IDS)
