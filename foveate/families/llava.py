"""LLaVA 1.5 and its relatives with a fixed-size CLIP or SigLIP encoder: one square grid per image, one token per patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape, RowsPer
from foveate.core.site import SiteKind
from foveate.errors import InputError, UnsupportedModel
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, FixedGridFamily, used_layers


class Llava(FixedGridFamily):
    """LlavaForConditionalGeneration."""

    model_types = ("llava",)
    title = "LLaVA 1.5"
    anchor = True
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "one grid per image, CLIP or SigLIP encoder"

    def covers(self, config: Any) -> bool:
        return super().covers(config) and (config.model_type, config.vision_config.model_type) != ("llava", "pixtral")

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
        prefix = prefix_tokens(vision)
        return MediumShape(
            kind="image",
            grid=(1, side, side),
            separators=(0,) if _shows_prefix(config) else (),
            encoder_tokens=side * side + prefix,
            encoder_sequences=(side * side + prefix,),
        )

    def encoder(self, config: Any) -> EncoderPath | None:
        return vit_path(config, self.image(config).grid[1:])

    def model_shape(self, config: Any) -> ModelShape:
        return ModelShape(
            family="llava",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config, prefix_tokens(config.vision_config)),
            projector=self.projector(config, RowsPer.ENCODED if _shows_prefix(config) else RowsPer.GRID),
        )

    def projector(self, config: Any, rows_per: RowsPer, kind: str | None = None) -> tuple[LinearShape, ...]:
        """The two layers between encoder and decoder."""
        hidden, layer = config.get_text_config().hidden_size, feature_layer(config)
        # Layers after the feature layer still run: Hugging Face computes all of them and picks a hidden state.
        features = config.vision_config.hidden_size * (1 if isinstance(layer, int) else len(layer))
        return LinearShape(features, hidden, rows_per, kind), LinearShape(hidden, hidden, rows_per, kind)

    def tiny_config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        text = LlamaConfig(**TINY_TEXT, num_hidden_layers=5)
        vision = CLIPVisionConfig(**TINY_VISION, num_hidden_layers=3)
        return LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=90, image_seq_length=36, vision_feature_layer=-2
        )


# Of CLIP and SigLIP layers.
VIT_MIDDLE = ("layer_norm2", "mlp")


def vit_path(config: Any, grid: tuple[int, int]) -> EncoderPath:
    """The CLIP or SigLIP encoder of LLaVA and its successors."""
    return EncoderPath(
        towers=("model.vision_tower",),
        projector="model.multi_modal_projector",
        grid=grid,
        used=used_layers(config.vision_config.num_hidden_layers, feature_layer(config)),
        prefix=prefix_tokens(config.vision_config),
        middle=VIT_MIDDLE,
    )


def feature_layer(config: Any) -> int | Sequence[int]:
    """The layer of the encoder whose states are features, or several whose states stand side by side."""
    # ViP-LLaVA has the plural, and in early versions of transformers no other name.
    found: int | Sequence[int] = getattr(config, "vision_feature_layers", None) or config.vision_feature_layer
    return found


def prefix_tokens(vision: Any) -> int:
    """CLIP has a class token, SigLIP has none."""
    return 1 if vision.model_type == "clip_vision_model" else 0


def frames_of_videos(inputs: Mapping[str, Any], columns: int) -> list[int]:
    """The number of frames of each video of a call, whose pixel values are [videos, frames, 3, height, width]."""
    videos = inputs.get("pixel_values_videos")
    if videos is None and columns:
        raise InputError(
            "the prompt has video placeholders but pixel_values_videos is missing, which says how many frames there are: "
            "pass everything the processor returned"
        )
    return [] if videos is None else [len(frames) for frames in videos]


def _shows_prefix(config: Any) -> bool:
    """Whether the decoder sees the encoder's class token."""
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    return bool(prefix_tokens(config.vision_config)) and strategy == "full"
