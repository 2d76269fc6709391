"""Video-LLaVA: images without their class tokens, videos of which every frame keeps its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import MediumShape, ModelShape, RowsPer
from foveate.errors import InputError
from foveate.families._base import TinyMedium
from foveate.families.llava import Llava, frames_of_videos, vit_path

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

# Videos of one call are stacked, so they have equally many frames.
_TINY_FRAMES = 2


class VideoLlava(Llava):
    """VideoLlavaForConditionalGeneration."""

    model_types = ("video_llava",)
    title = "Video-LLaVA"
    placeholders = {"image": "image_token_id", "video": "video_token_id"}
    notes = "images and videos with encoders of their own, a class token in front of each frame"

    def encoder(self, config: Any) -> EncoderPath | None:
        return replace(vit_path(config, self.image(config).grid[1:]), towers=("model.image_tower", "model.video_tower"))

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        # Processors call the pixels of images by a name of their own; so do models before transformers 5.23.
        pixels = inputs.get("pixel_values", inputs.get("pixel_values_images"))
        shapes = [self._video(config, frames) for frames in frames_of_videos(inputs, columns["video"])]
        return {**super().media(config, {"pixel_values": pixels}, columns), "video": shapes}

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        return self._video(config, frames)

    def _video(self, config: Any, frames: int) -> MediumShape:
        """The shape of any video of so many frames."""
        image = self.image(config)
        (one,), (_, h, w) = image.encoder_sequences, image.grid
        return replace(
            image,
            kind="video",
            grid=(frames, h, w),
            separators=tuple(one * frame + token for frame in range(frames) for token in range(one - h * w)),
            encoder_tokens=one * frames,
            encoder_sequences=(one,) * frames,
        )

    def model_shape(self, config: Any) -> ModelShape:
        shape = super().model_shape(config)
        images = tuple(replace(linear, kind="image") for linear in shape.projector)
        return replace(shape, family="video_llava", projector=images + self.projector(config, RowsPer.ENCODED, "video"))

    def tiny_config(self) -> Any:
        from transformers import VideoLlavaConfig

        config = super().tiny_config().to_dict()
        kept = ("vision_config", "text_config", "image_token_index", "image_seq_length", "vision_feature_layer")
        return VideoLlavaConfig(**{name: config[name] for name in kept}, video_token_index=91, video_seq_length=74)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch
        from transformers import VideoLlavaForConditionalGeneration

        if kind == "image":
            medium = super().tiny_medium(config, kind, number, random)
            names = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
            name = "pixel_values" if "pixel_values" in names else "pixel_values_images"
            return replace(medium, inputs={name: medium.inputs["pixel_values"]})
        side = config.vision_config.image_size
        ids = torch.full((self._video(config, _TINY_FRAMES).tokens,), config.video_token_id)
        pixels = torch.randn(1, _TINY_FRAMES, 3, side, side, generator=random)
        return TinyMedium(kind, ids, {"pixel_values_videos": pixels})
