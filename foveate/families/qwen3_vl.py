"""Qwen3-VL: any image size, DeepStack, interleaved M-RoPE, video whose frames stand apart, each after its timestamp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.shape import EncoderShape, MediumShape, ModelShape
from foveate.errors import InputError, UnsupportedModel
from foveate.families._base import StackedFeatures, TinyMedium
from foveate.families._resize import resized
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT, TINY_PACKED_VISION
from foveate.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch


class Qwen3VL(Qwen2VL):
    """Qwen3VLForConditionalGeneration.

    Class attributes:
        video_pixels: least and most pixels of a whole video, in the video preprocessor config of the published checkpoints.
    """

    model_types = ("qwen3_vl",)
    title = "Qwen3-VL"
    notes = "images and video of any size, DeepStack, interleaved M-RoPE"
    pixels: ClassVar[tuple[int, int]] = (65_536, 16_777_216)
    video_pixels: ClassVar[tuple[int, int]] = (4_096, 25_165_824)

    def check(self, config: Any) -> None:
        layers = config.get_text_config().num_hidden_layers
        if len(config.vision_config.deepstack_visual_indexes) >= layers:
            raise UnsupportedModel(f"DeepStack features after each of all {layers} layers: nothing runs after the last one")

    def stacked_features(self, config: Any) -> StackedFeatures:
        layers = len(config.vision_config.deepstack_visual_indexes)
        return StackedFeatures("deepstack_visual_embeds", "visual_pos_masks", layers)

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        vision = config.vision_config
        together, patch = vision.temporal_patch_size, vision.patch_size
        if frames < together:
            raise InputError(f"frames={frames}: {self.title} takes videos of at least {together} frames")
        high, wide = resized(size, patch * vision.spatial_merge_size, self.video_pixels, frames, together, enlarges_thin=True)
        return self._medium(config, "video", (-(-frames // together), high // patch, wide // patch))

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        encoder = EncoderShape(
            layers=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_heads,
            patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        )
        merger = self._merger(vision, encoder, vision.out_hidden_size)
        layers = getattr(vision, "deepstack_visual_indexes", ())
        aside = tuple(replace(linear, after=layer) for layer in layers for linear in merger)
        return ModelShape(self.model_types[0], self.decoder_shape(config), encoder, aside + merger)

    def tiny_config(self) -> Any:
        from transformers import Qwen3VLConfig

        return Qwen3VLConfig(text_config={**TINY_MROPE_TEXT, "head_dim": 8}, vision_config=self._tiny_vision(), **TINY_IDS)

    def _tiny_vision(self) -> dict[str, Any]:
        own = dict(hidden_size=32, intermediate_size=64, out_hidden_size=32, deepstack_visual_indexes=[0, 1, 2])
        return {**TINY_PACKED_VISION, **own, "num_position_embeddings": 36}

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        return timed(config, super().tiny_medium(config, kind, number, random))


def timed(config: Any, medium: TinyMedium) -> TinyMedium:
    """A video with its frames apart: each behind a timestamp, its tokens between brackets. An image as it is."""
    import torch

    if medium.kind == "image":
        return medium
    grid: Sequence[int] = medium.inputs["video_grid_thw"][0].tolist()
    start, end = torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id])
    frames = medium.ids.view(grid[0], -1)
    parts = [torch.cat([torch.tensor([20 + 3 * t, 21 + t]), start, frame, end]) for t, frame in enumerate(frames)]
    return TinyMedium(medium.kind, torch.cat(parts), medium.inputs)
