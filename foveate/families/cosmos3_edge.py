"""Cosmos3 Edge: SigLIP2 for pictures of any size, frames of a video apart, each after its timestamp, interleaved M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TinyMedium
from foveate.families._resize import resized
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen3_vl import timed

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

# Least and most pixels of a whole video: of the video processor's class.
_VIDEO = (4_096, 25_165_824)
# Patches (t, h, w) of the media of tiny models.
_TINY_GRIDS = {"image": ((1, 8, 8), (1, 8, 12), (1, 4, 8)), "video": ((2, 4, 8), (3, 4, 4))}


class Cosmos3Edge(Qwen2VL):
    """Cosmos3EdgeForConditionalGeneration."""

    model_types = ("cosmos3_edge",)
    title = "Cosmos3 Edge"
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its merger stands behind the encoder; no stage acts inside this encoder in this version",
    }
    notes = "images and video of any size, interleaved M-RoPE, packed encoder"
    pixels = (65_536, 16_777_216)  # of the image processor's class

    def encoder(self, config: Any) -> None:
        return None

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return [self._of_size(config, "image", size, 1, self.pixels) for size in sizes]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        return self._of_size(config, "video", size, frames, _VIDEO)

    def _of_size(self, config: Any, kind: str, size: tuple[int, int], frames: int, pixels: tuple[int, int]) -> MediumShape:
        patch = config.vision_config.patch_size
        unit = patch * config.vision_config.spatial_merge_size
        high, wide = resized(size, unit, pixels, frames, enlarges_thin=True)
        return self._medium(config, kind, (frames, high // patch, wide // patch))

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), gated_mlp=False)

    def model_shape(self, config: Any) -> ModelShape:
        merged, inner = (
            config.vision_config.hidden_size * config.vision_config.spatial_merge_size**2,
            config.projector_hidden_size,
        )
        return ModelShape(
            family="cosmos3_edge",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(LinearShape(merged, inner), LinearShape(inner, config.get_text_config().hidden_size)),
        )

    def tiny_config(self) -> Any:
        from transformers import Cosmos3EdgeConfig

        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, patch_size=4)
        return Cosmos3EdgeConfig(
            text_config={**TINY_MROPE_TEXT, "head_dim": 8},
            vision_config=dict(**vision, num_patches=36),
            projector_hidden_size=48,
            **TINY_IDS,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        t, h, w = _TINY_GRIDS[kind][number % len(_TINY_GRIDS[kind])]
        pixels = torch.randn(t * h * w, 3 * config.vision_config.patch_size**2, generator=random)
        ids = torch.full((t * h * w // config.vision_config.spatial_merge_size**2,), self.placeholder_ids(config)[kind])
        name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
        return timed(config, TinyMedium(kind, ids, {name: pixels, f"{kind}_grid_thw": torch.tensor([[t, h, w]])}))
