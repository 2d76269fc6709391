"""Gemma 3: sliding-window and full layers, image tokens that see each other in both directions, 256 tokens per image."""

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


class Gemma3(FixedGridFamily):
    """Gemma3ForConditionalGeneration."""

    model_types = ("gemma3",)
    title = "Gemma 3"
    anchor = True
    bidirectional = True
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "sliding and full layers, bidirectional image blocks"

    def image(self, config: Any) -> MediumShape:
        vision = config.vision_config
        side = int(config.mm_tokens_per_image**0.5)
        patches = (vision.image_size // vision.patch_size) ** 2
        return MediumShape("image", (1, side, side), encoder_tokens=patches, encoder_sequences=(patches,))

    def encoder(self, config: Any) -> EncoderPath | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return EncoderPath(
            towers=("model.vision_tower",),
            projector="model.multi_modal_projector",
            grid=(side, side),
            used=config.vision_config.num_hidden_layers,
            unit=side // self.image(config).grid[1],  # squares of patches that the projector averages
            middle=VIT_MIDDLE,
        )

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        return ModelShape(
            family="gemma3",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(LinearShape(vision.hidden_size, text.hidden_size),),
        )

    def tiny_config(self) -> Any:
        from transformers import Gemma3Config, Gemma3TextConfig

        text = Gemma3TextConfig(
            **TINY_TEXT,
            num_hidden_layers=6,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"] * 2,
        )
        vision = dict(**TINY_VISION, num_hidden_layers=2, vision_use_head=False)
        return Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=36,
            image_token_id=90,
            boi_token_id=92,
            eoi_token_id=93,
        )

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        return {**super().tiny_batch(config, ids, media), "token_type_ids": (ids == config.image_token_id).long()}
