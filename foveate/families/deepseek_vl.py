"""DeepSeek-VL with one encoder (1.3B): one square grid of SigLIP patches per image, one token per patch."""

from __future__ import annotations

from typing import Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, FixedGridFamily
from foveate.families.llava import VIT_MIDDLE


class DeepseekVL(FixedGridFamily):
    """DeepseekVLForConditionalGeneration."""

    model_types = ("deepseek_vl",)
    title = "DeepSeek-VL"
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "one grid per image, SigLIP encoder"

    def image(self, config: Any) -> MediumShape:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return MediumShape("image", (1, side, side), encoder_tokens=side**2, encoder_sequences=(side**2,))

    def encoder(self, config: Any) -> EncoderPath | None:
        return EncoderPath(
            towers=("model.vision_model",),
            projector="model.aligner",
            grid=self.image(config).grid[1:],
            used=config.vision_config.num_hidden_layers,
            middle=VIT_MIDDLE,
        )

    def model_shape(self, config: Any) -> ModelShape:
        hidden = config.get_text_config().hidden_size
        aligner = (LinearShape(config.vision_config.hidden_size, hidden), LinearShape(hidden, hidden))
        return ModelShape("deepseek_vl", self.decoder_shape(config), self.encoder_shape(config), aligner)

    def tiny_config(self) -> Any:
        from transformers import DeepseekVLConfig

        return DeepseekVLConfig(
            text_config=dict(**TINY_TEXT, model_type="llama", num_hidden_layers=5),
            vision_config=dict(**TINY_VISION, model_type="siglip_vision_model", num_hidden_layers=3, vision_use_head=False),
            image_token_id=90,
            tie_word_embeddings=False,
        )
