"""LLaVA 1.5 and its relatives with a fixed-size CLIP or SigLIP encoder: one square grid per image, one token per patch."""

from __future__ import annotations

from typing import Any

from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.errors import UnsupportedModel
from foveate.families._base import TINY_TEXT, TINY_VISION, FixedGridFamily


class Llava(FixedGridFamily):
    """LlavaForConditionalGeneration."""

    model_types = ("llava",)
    title = "LLaVA 1.5"
    notes = "one grid per image, CLIP or SigLIP encoder"

    def covers(self, config: Any) -> bool:
        return super().covers(config) and config.vision_config.model_type != "pixtral"

    def check(self, config: Any) -> None:
        encoder = config.vision_config.model_type
        if encoder not in ("clip_vision_model", "siglip_vision_model"):
            raise UnsupportedModel(
                f"LLaVA with a '{encoder}' encoder: the family files cover CLIP, SigLIP and Pixtral encoders"
            )
        if encoder == "siglip_vision_model" and config.vision_feature_select_strategy == "default":
            raise UnsupportedModel(
                "vision_feature_select_strategy='default' cuts the first token, which for a SigLIP encoder is a patch and "
                "leaves no grid: checkpoints with SigLIP say 'full'"
            )

    def image(self, config: Any) -> MediumShape:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        prefix = _prefix_tokens(vision)
        shows_prefix = prefix and config.vision_feature_select_strategy == "full"
        return MediumShape(
            kind="image",
            grid=(1, side, side),
            separators=(0,) if shows_prefix else (),
            encoder_tokens=side * side + prefix,
            encoder_sequences=(side * side + prefix,),
        )

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        layer = config.vision_feature_layer
        # Layers behind the feature layer still run: Hugging Face computes all of them and picks a hidden state.
        features = vision.hidden_size * (1 if isinstance(layer, int) else len(layer))
        return ModelShape(
            family="llava",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config, _prefix_tokens(vision)),
            projector=(LinearShape(features, text.hidden_size), LinearShape(text.hidden_size, text.hidden_size)),
        )

    def tiny_config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        text = LlamaConfig(**TINY_TEXT, num_hidden_layers=5)
        vision = CLIPVisionConfig(**TINY_VISION, num_hidden_layers=3)
        return LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=90, image_seq_length=36, vision_feature_layer=-2
        )


def _prefix_tokens(vision: Any) -> int:
    """CLIP has a class token, SigLIP has none."""
    return 1 if vision.model_type == "clip_vision_model" else 0
