"""LLaVA-OneVision: anyres as in LLaVA-NeXT with a bound on its tokens, several images without tiles, pooled video frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foveate.core.canvas import Canvas
from foveate.core.encoder import EncoderPath
from foveate.core.shape import MediumShape, ModelShape, RowsPer
from foveate.errors import InputError
from foveate.families._base import TINY_TEXT, TINY_VISION
from foveate.families.llava import vit_path
from foveate.families.llava_next import LlavaNext
from foveate.families.llava_next_video import LlavaNextVideo


class LlavaOnevision(LlavaNextVideo):
    """LlavaOnevisionForConditionalGeneration."""

    model_types = ("llava_onevision",)
    title = "LLaVA-OneVision"
    host_inputs = ("image_sizes", "batch_num_images")
    notes = "anyres images of bounded size, several images without tiles, pooled frames, newline tokens"

    def encoder(self, config: Any) -> EncoderPath | None:
        # Tiles beyond the bound and all frames are shrunk after the projector.
        return replace(vit_path(config, self._side(config)), mixes=True)

    def _of_call(self, config: Any, sizes: list[tuple[int, int]], inputs: Mapping[str, Any]) -> list[MediumShape]:
        counts = inputs.get("batch_num_images")
        if counts is None:
            return super()._of_call(config, sizes, inputs)
        alone = [int(count) == 1 for count in counts for _ in range(int(count))]
        if len(alone) != len(sizes):
            raise InputError(f"batch_num_images counts {len(alone)} images, but image_sizes has {len(sizes)} rows")
        return [
            self._tiled(config, *size) if tiled else self._untiled(config) for size, tiled in zip(sizes, alone, strict=True)
        ]

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return super().media_of_images(config, sizes) if len(sizes) == 1 else [self._untiled(config)] * len(sizes)

    def _untiled(self, config: Any) -> MediumShape:
        """One of several images in a prompt: an overview and one newline token."""
        base, side = self.image(config), self._side(config)
        return replace(base, separators=(base.tokens,), canvases=(Canvas.of_row(side, side),))

    def _shrunk(self, config: Any, h: int, w: int) -> tuple[int, int]:
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(h * w / (most * self.image(config).tokens))
        return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)

    def _video(self, config: Any, frames: int) -> MediumShape:
        shape = super()._video(config, frames)
        return replace(shape, separators=(shape.tokens,))

    def _frame(self, config: Any) -> Canvas:
        height, width = self._side(config)
        return Canvas.of_row((height, width), (-(-height // 2), -(-width // 2)))

    def model_shape(self, config: Any) -> ModelShape:
        # Frames are projected before they are pooled.
        return replace(LlavaNext.model_shape(self, config), projector=self.projector(config, RowsPer.PATCH))

    def tiny_config(self) -> Any:
        from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

        vision = {**TINY_VISION, "image_size": 16, "num_hidden_layers": 3, "vision_use_head": False}
        return LlavaOnevisionConfig(
            text_config=Qwen2Config(**TINY_TEXT, num_hidden_layers=5),
            vision_config=SiglipVisionConfig(**vision),
            image_token_index=90,
            video_token_index=91,
            image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
            vision_aspect_ratio="anyres_max_3",
        )
