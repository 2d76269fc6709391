"""InternVL: tiles, then a thumbnail, in one run of placeholders, 2 x 2 patches shuffled into one token."""

from __future__ import annotations

from typing import Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import UnsupportedModel
from foveate.families._base import NO_PIXELS, TINY_TEXT, used_layers
from foveate.families._tiles import TiledFamily, nearest_aspect, refuse_video

# Tiles without the thumbnail, as the preprocessor configs of the published checkpoints say.
_MAX_TILES = 12


class InternVL(TiledFamily):
    """InternVLForConditionalGeneration."""

    model_types = ("internvl",)
    title = "InternVL"
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "images in tiles with a thumbnail, pixel shuffle, frames of a video are images"

    def check(self, config: Any) -> None:
        if config.vision_feature_select_strategy != "default":
            raise UnsupportedModel(
                f"vision_feature_select_strategy='{config.vision_feature_select_strategy}' keeps the class token of each tile, "
                "which leaves no square to shuffle: checkpoints say 'default'"
            )

    def tile(self, config: Any) -> MediumShape:
        vision = config.vision_config
        h, w = (size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
        return MediumShape(
            kind="image",
            grid=(1, int(h * config.downsample_ratio), int(w * config.downsample_ratio)),
            encoder_tokens=h * w + 1,
            encoder_sequences=(h * w + 1,),
        )

    def encoder(self, config: Any) -> EncoderPath | None:
        vision, unit = config.vision_config, int(1 / config.downsample_ratio)
        h, w = (size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
        return EncoderPath(
            towers=("model.vision_tower",),
            projector="model.multi_modal_projector",
            attention="attention",
            grid=(h, w),
            used=used_layers(vision.num_hidden_layers, config.vision_feature_layer),
            prefix=1,
            unit=unit,
        )

    def tiles_of_size(self, config: Any, width: int, height: int) -> int:
        return nearest_aspect(width, height, config.vision_config.image_size[0], _MAX_TILES)

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        raise refuse_video(self.title, self.tile(config).tokens)

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        shuffled = vision.hidden_size * int(1 / config.downsample_ratio) ** 2
        return ModelShape(
            family="internvl",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config, prefix_tokens=1),
            projector=(LinearShape(shuffled, text.hidden_size), LinearShape(text.hidden_size, text.hidden_size)),
        )

    def tiny_config(self) -> Any:
        from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2)
        return InternVLConfig(
            text_config=Qwen2Config(**TINY_TEXT, num_hidden_layers=5),
            vision_config=InternVLVisionConfig(**vision, image_size=24, patch_size=4),
            image_token_id=90,
            image_seq_length=9,
            tie_word_embeddings=False,
        )

    def tiny_ids(self, run: list[int], tiles: int) -> list[int]:
        return [92, *run * tiles, 93]
