"""Command A Vision: tiles and a thumbnail, a line break after each; sliding and full layers in the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveate.families._tiles import groups
from foveate.families.aya_vision import AyaVision

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Tiles without the thumbnail, the default of the image processor.
_MAX_TILES = 12


class Cohere2Vision(AyaVision):
    """Cohere2VisionForConditionalGeneration."""

    model_types = ("cohere2_vision",)
    title = "Cohere2 Vision"

    def check(self, config: Any) -> None:
        """It has one way to select features."""

    def tiles_of_size(self, config: Any, width: int, height: int) -> int:
        tile = config.vision_config.image_size
        layouts = [(across, down) for across in range(1, _MAX_TILES + 1) for down in range(1, _MAX_TILES // across + 1)]
        layouts.sort(key=lambda layout: layout[0] * layout[1])
        # How much the image must be enlarged to fill each layout. The least enlargement wins, or else the least shrinking.
        scales = [min(across * tile / width, down * tile / height) for across, down in layouts]
        enlarging = [scale for scale in scales if scale >= 1]
        across, down = layouts[scales.index(min(enlarging) if enlarging else max(scales))]
        return across * down + 1 if across * down > 1 else 1

    def tiles_of_images(self, ids: Tensor, starts: list[int], ends: list[int], tokens: int) -> list[int]:
        # One line break stands between the tiles of an image, and brackets besides between images.
        gaps = [start - end for end, start in zip(ends, starts[1:], strict=False)]
        return groups([gap == 1 for gap in gaps]) if starts else []

    def tiny_config(self) -> Any:
        from transformers import Cohere2VisionConfig

        return Cohere2VisionConfig(**self.tiny_parts(), image_token_id=90)

    def tiny_ids(self, run: list[int], tiles: int) -> list[int]:
        return [92, *(*run, 94) * tiles, 93]
