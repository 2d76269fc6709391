"""Janus: one square grid of SigLIP-like patches per image that is read; the images that it draws are no media of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveate.core.shape import EncoderShape, LinearShape, ModelShape
from foveate.families._base import TINY_TEXT, TINY_VISION, TinyMedium
from foveate.families.deepseek_vl import DeepseekVL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

# Around each image in prompts of tiny models.
_START, _END = 92, 93


class Janus(DeepseekVL):
    """JanusForConditionalGeneration."""

    model_types = ("janus",)
    title = "Janus"
    notes = "one grid per image, SigLIP-like encoder, reading images only"

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        encoder = EncoderShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=int(vision.hidden_size * vision.mlp_ratio),
            heads=vision.num_attention_heads,
            patch_inputs=vision.num_channels * vision.patch_size**2,
        )
        width = vision.projection_dim
        aligner = (LinearShape(vision.hidden_size, width), *[LinearShape(width, width)] * (vision.depth - 1))
        return ModelShape("janus", self.decoder_shape(config), encoder, aligner)

    def tiny_config(self) -> Any:
        from transformers import JanusConfig

        vision = {name: value for name, value in TINY_VISION.items() if name != "intermediate_size"}
        # What draws images is not asked for here, only kept small.
        drawing = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=0, latent_channels=4, num_embeddings=16)
        drawing |= dict(projection_dim=32, image_token_embed_dim=32)
        return JanusConfig(
            text_config=dict(**TINY_TEXT, model_type="llama", num_hidden_layers=5),
            vision_config=dict(**vision, num_hidden_layers=3, mlp_ratio=2.0, projection_dim=32),
            vq_config=drawing,
            image_token_id=90,
            tie_word_embeddings=False,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        medium = super().tiny_medium(config, kind, number, random)
        return TinyMedium(kind, torch.cat([torch.tensor([_START]), medium.ids, torch.tensor([_END])]), medium.inputs)
