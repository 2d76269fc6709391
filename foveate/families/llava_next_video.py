"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; the patches of each frame are pooled, and no newline stands between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.canvas import Canvas
from foveate.core.encoder import EncoderPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape, RowsPer
from foveate.errors import InputError, UnsupportedCombination
from foveate.families._base import TinyMedium
from foveate.families.llava import frames_of_videos, vit_path
from foveate.families.llava_next import LlavaNext

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

# Videos of one call are stacked, so they have equally many frames.
_TINY_FRAMES = 2


class LlavaNextVideo(LlavaNext):
    """LlavaNextVideoForConditionalGeneration."""

    model_types = ("llava_next_video",)
    title = "LLaVA-NeXT-Video"
    placeholders = {"image": "image_token_id", "video": "video_token_id"}
    notes = "anyres images with newline tokens, pooled frames"

    def encoder(self, config: Any) -> EncoderPath | None:
        if config.spatial_pool_mode != "average":
            raise UnsupportedCombination(
                f"spatial_pool_mode='{config.spatial_pool_mode}': only an average can do without patches that are gone; leave "
                "site=vision out, site=pre_llm works"
            )
        return replace(vit_path(config, self._side(config)), pooler="model.vision_resampler", pooled=self._frame(config))

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        shapes = [self._video(config, frames) for frames in frames_of_videos(inputs, columns["video"])]
        return {**super().media(config, inputs, columns), "video": shapes}

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        return self._video(config, frames)

    def _video(self, config: Any, frames: int) -> MediumShape:
        """The shape of any video of so many frames."""
        base, canvas = self.image(config), self._frame(config)
        return replace(
            base,
            kind="video",
            grid=(frames, *canvas.grid),
            canvases=(canvas,) * frames,
            encoder_tokens=base.encoder_tokens * frames,
            encoder_sequences=base.encoder_sequences * frames,
        )

    def _side(self, config: Any) -> tuple[int, int]:
        """(h, w) patches of each tile or frame."""
        _, height, width = self.image(config).grid
        return height, width

    def _frame(self, config: Any) -> Canvas:
        """How a frame's patches become visual tokens."""
        (height, width), stride = self._side(config), int(config.spatial_pool_stride)
        return Canvas.of_row((height, width), (height // stride, width // stride), stride)

    def model_shape(self, config: Any) -> ModelShape:
        shape = super().model_shape(config)
        hidden, stride = config.vision_config.hidden_size, config.spatial_pool_stride
        pooling = (LinearShape(hidden * stride**2, hidden, kind="video"),) if config.spatial_pool_mode == "conv" else ()
        images, videos = (
            self.projector(config, rows, kind) for rows, kind in ((RowsPer.PATCH, "image"), (RowsPer.GRID, "video"))
        )
        return replace(shape, projector=(*images, *pooling, *videos))

    def tiny_config(self) -> Any:
        from transformers import LlavaNextVideoConfig

        config = super().tiny_config().to_dict()
        kept = ("vision_config", "text_config", "image_token_index", "image_grid_pinpoints", "image_seq_length")
        return LlavaNextVideoConfig(**{name: config[name] for name in kept}, video_token_index=91, video_seq_length=8)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        if kind == "image":
            return super().tiny_medium(config, kind, number, random)
        side = config.vision_config.image_size
        ids = torch.full((self._video(config, _TINY_FRAMES).tokens,), config.video_token_id)
        pixels = torch.randn(1, _TINY_FRAMES, 3, side, side, generator=random)
        return TinyMedium(kind, ids, {"pixel_values_videos": pixels})
