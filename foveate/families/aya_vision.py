"""Aya Vision: tiles and a thumbnail, a marker in front of each; sliding and full layers in the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import UnsupportedModel
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, used_layers
from foveate.families._tiles import TiledFamily, groups, nearest_aspect
from foveate.families.llava import VIT_MIDDLE

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Tiles without the thumbnail, as the preprocessor configs of the published checkpoints say.
_MAX_TILES = 12


class AyaVision(TiledFamily):
    """AyaVisionForConditionalGeneration."""

    model_types = ("aya_vision",)
    title = "Aya Vision"
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "images in tiles with a thumbnail, pixel shuffle, sliding and full layers"

    def check(self, config: Any) -> None:
        if config.vision_feature_select_strategy == "default":
            raise UnsupportedModel(
                "vision_feature_select_strategy='default' cuts the first token, which for a SigLIP encoder is a patch and "
                "leaves no grid: checkpoints say 'full'"
            )

    def tile(self, config: Any) -> MediumShape:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        shuffled = side // config.downsample_factor
        return MediumShape("image", (1, shuffled, shuffled), encoder_tokens=side * side, encoder_sequences=(side * side,))

    def encoder(self, config: Any) -> EncoderPath | None:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        return EncoderPath(
            towers=("model.vision_tower",),
            projector="model.multi_modal_projector",
            grid=(side, side),
            used=used_layers(vision.num_hidden_layers, getattr(config, "vision_feature_layer", -1)),
            unit=config.downsample_factor,
            middle=VIT_MIDDLE,
        )

    def tiles_of_size(self, config: Any, width: int, height: int) -> int:
        return nearest_aspect(width, height, config.vision_config.image_size, _MAX_TILES)

    def tiles_of_images(self, ids: Tensor, starts: list[int], ends: list[int], tokens: int) -> list[int]:
        # A bracket closes each image. Which id it is depends on the tokenizer, so it is read off the end of the last image.
        closing = int(ids[ends[-1]]) if ends and ends[-1] < len(ids) else None
        return groups([int(ids[end]) != closing for end in ends[:-1]]) if ends else []

    def rotates(self, config: Any, layer: int) -> bool:
        # Cohere's decoders of two kinds of layers know positions in the sliding ones only.
        windows = self.decoder_windows(config)
        return windows[layer] is not None or not any(windows)

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        widened = getattr(config, "alignment_intermediate_size", text.hidden_size)
        return ModelShape(
            family=self.model_types[0],
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(
                LinearShape(vision.hidden_size * config.downsample_factor**2, widened),
                LinearShape(widened // 2, text.hidden_size),
            ),
        )

    def tiny_config(self) -> Any:
        from transformers import AyaVisionConfig

        return AyaVisionConfig(**self.tiny_parts(), image_token_index=90)

    def tiny_parts(self) -> dict[str, Any]:
        """What the tiny configs of this family and its relative share."""
        from transformers import Cohere2Config, SiglipVisionConfig

        layers = ["sliding_attention", "full_attention", "sliding_attention"] * 2
        text = Cohere2Config(**TINY_TEXT, num_hidden_layers=6, sliding_window=24, layer_types=layers, logit_scale=1.0)
        vision = SiglipVisionConfig(**TINY_VISION, num_hidden_layers=2, vision_use_head=False)
        sizes = dict(downsample_factor=2, alignment_intermediate_size=48, tie_word_embeddings=False)
        return dict(text_config=text, vision_config=vision, **sizes)

    def tiny_ids(self, run: list[int], tiles: int) -> list[int]:
        numbered = [token for number in range(tiles - 1) for token in (94 + number, *run)]
        return [92, *numbered, 98, *run, 93]
