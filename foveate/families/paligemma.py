"""PaliGemma 1 and 2: the whole prompt sees itself in both directions; Gemma or Gemma 2 with sliding layers and a softcap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, FixedGridFamily, TinyMedium
from foveate.families.llava import VIT_MIDDLE

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


class PaliGemma(FixedGridFamily):
    """PaliGemmaForConditionalGeneration."""

    model_types = ("paligemma",)
    title = "PaliGemma"
    bidirectional = True
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "one grid per image, bidirectional prompt"

    def image(self, config: Any) -> MediumShape:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return MediumShape("image", (1, side, side), encoder_tokens=side * side, encoder_sequences=(side * side,))

    def encoder(self, config: Any) -> EncoderPath | None:
        return EncoderPath(
            towers=("model.vision_tower",),
            projector="model.multi_modal_projector",
            grid=self.image(config).grid[1:],
            used=config.vision_config.num_hidden_layers,
            middle=VIT_MIDDLE,
        )

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        return ModelShape(
            family="paligemma",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(LinearShape(vision.hidden_size, vision.projection_dim),),
        )

    def tiny_config(self) -> Any:
        from transformers import GemmaConfig, PaliGemmaConfig

        text = GemmaConfig(**TINY_TEXT, num_hidden_layers=5, head_dim=8)
        vision = dict(**TINY_VISION, model_type="siglip_vision_model", num_hidden_layers=2, vision_use_head=False)
        width = TINY_TEXT["hidden_size"]
        return PaliGemmaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=90,
            vocab_size=TINY_TEXT["vocab_size"],
            projection_dim=width,
            hidden_size=width,
            tie_word_embeddings=False,
        )

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        import torch

        # 0 is the prompt, 1 an answer to be learned.
        return {**super().tiny_batch(config, ids, media), "token_type_ids": torch.zeros_like(ids)}
