"""Gemma 4 without encoders (12B): merged patches enter the decoder through one dense layer; no embeddings per layer."""

from __future__ import annotations

from typing import Any

from foveate.core.shape import EncoderShape, LinearShape, ModelShape, RowsPer
from foveate.core.site import SiteKind
from foveate.families._base import NO_PIXELS, TINY_TEXT
from foveate.families.gemma4 import Gemma4


class Gemma4Unified(Gemma4):
    """Gemma4UnifiedForConditionalGeneration."""

    model_types = ("gemma4_unified",)
    title = "Gemma 4 Unified"
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "it has no vision encoder: choose in the language model (site=pre_llm or layer=k)",
    }
    token_inputs = ()
    same_when_static = False  # pictures see both ways in all layers, but with a static cache in sliding layers alone
    notes = "no vision encoder, sliding and full layers, images of any shape, video"

    def side(self, config: Any) -> int:
        return 1  # the processor merges patches

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        side = vision.patch_size * vision.pooling_kernel_size
        # No layers: what is left of an encoder is its patch embedding, which runs over padding too.
        encoder = EncoderShape(layers=0, hidden=vision.mm_embed_dim, intermediate=0, heads=1, patch_inputs=3 * side**2)
        projector = (LinearShape(vision.output_proj_dims, text.hidden_size, RowsPer.PATCH),)
        return ModelShape("gemma4_unified", self.decoder_shape(config), encoder, projector)

    def tiny_config(self) -> Any:
        from transformers import Gemma4UnifiedConfig

        text = dict(
            **TINY_TEXT,
            num_hidden_layers=6,
            layer_types=["sliding_attention", "full_attention"] * 3,
            sliding_window=24,
            head_dim=8,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            use_bidirectional_attention="vision",
        )
        vision = dict(patch_size=2, pooling_kernel_size=3, mm_embed_dim=32, mm_posemb_size=32, output_proj_dims=32)
        ids = dict(image_token_id=90, video_token_id=91, boi_token_id=92, eoi_token_id=93, audio_token_id=94)
        return Gemma4UnifiedConfig(text_config=text, vision_config=vision, boa_token_id=95, eoa_token_index=96, **ids)
