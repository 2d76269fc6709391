"""Ovis2: an overview and tiles with indicator tokens between them; visual tokens are mixtures of a visual vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.encoder import EncoderPath
from foveate.core.shape import DecoderShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.families._base import NO_PIXELS, TINY_TEXT
from foveate.families._tiles import TiledFamily, groups

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Tiles besides the overview, the default of the image processor; and the share of the image that they must show unshrunk.
_MAX_TILES, _COVERED = 12, 0.9


class Ovis2(TiledFamily):
    """Ovis2ForConditionalGeneration. The overview is the first part of an image."""

    model_types = ("ovis2",)
    title = "Ovis2"
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "images in tiles after an overview, soft visual vocabulary, indicator tokens stay"

    def tile(self, config: Any) -> MediumShape:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        strided = -(-side // vision.hidden_stride)
        return MediumShape("image", (1, strided, strided), encoder_tokens=side * side, encoder_sequences=(side * side,))

    def encoder(self, config: Any) -> EncoderPath | None:
        vision = config.vision_config
        side, unit = vision.image_size // vision.patch_size, vision.hidden_stride
        if side % unit:
            return None  # the outer units are filled up with zeros
        return EncoderPath(
            towers=("model.vision_tower.transformer",),
            projector="model.visual_embeddings_table",
            attention="attention",
            grid=(side, side),
            used=vision.num_hidden_layers,
            unit=unit,
            middle=("rms_norm2", "ffn"),
        )

    def tiles_of_size(self, config: Any, width: int, height: int) -> int:
        tile = config.vision_config.image_size
        layouts = [(down, across) for down in range(1, _MAX_TILES + 1) for across in range(1, _MAX_TILES // down + 1)]
        covered = {
            layout: _covered(width, height, layout, tile) for layout in sorted(layouts, key=lambda pair: pair[0] * pair[1])
        }
        enough = {layout: share for layout, share in covered.items() if share > _COVERED}
        if enough:
            down, across = min(enough, key=lambda pair: (pair[0] * pair[1], -enough[pair]))
        else:
            down, across = min(covered, key=lambda pair: (-covered[pair], pair[0] * pair[1]))
        return down * across + 1 if down * across > 1 else 1

    def tiles_of_images(self, ids: Tensor, starts: list[int], ends: list[int], tokens: int) -> list[int]:
        # One indicator stands between the tiles of an image, and at least two between images.
        gaps = [start - end for end, start in zip(ends, starts[1:], strict=False)]
        return groups([gap == 1 for gap in gaps]) if starts else []

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), vocabulary=config.vocab_size)

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        words = vision.vocab_size - vision.num_visual_indicator_tokens
        return ModelShape(
            family="ovis2",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config, gated_mlp=True),
            projector=(
                LinearShape(vision.hidden_size * vision.hidden_stride**2, words),
                LinearShape(vision.vocab_size, config.hidden_size),
            ),
        )

    def tiny_config(self) -> Any:
        from transformers import Ovis2Config, Ovis2VisionConfig, Qwen2Config

        vision = dict(
            hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, image_size=24, patch_size=4
        )
        return Ovis2Config(
            text_config=Qwen2Config(**TINY_TEXT, num_hidden_layers=5),
            vision_config=Ovis2VisionConfig(**vision, hidden_stride=2, vocab_size=60),
            hidden_size=TINY_TEXT["hidden_size"],
            vocab_size=TINY_TEXT["vocab_size"],
            image_token_id=90,
            visual_indicator_token_ids=[92, 93, 94, 95, 96],
            tie_word_embeddings=False,
        )

    def tiny_ids(self, run: list[int], tiles: int) -> list[int]:
        start, grid, column, _, end = range(92, 97)
        rest = [token for number in range(tiles - 1) for token in ((column, *run) if number else run)]
        return [start, *run, grid, *rest, end]


def _covered(width: int, height: int, layout: tuple[int, int], tile: int) -> float:
    """The share of an image whose pixels survive when it is cut in rows x columns that are then shrunk to `tile` pixels.

    Written like the image processor's rule, with its order of operations: the shares are compared to a bound.
    """
    rows, columns = layout
    total = 0.0
    for row in range(rows):
        for column in range(columns):
            w = width - column * (width // columns) if column == columns - 1 else width // columns
            h = height - row * (height // rows) if row == rows - 1 else height // rows
            w, h = max(w, h), min(w, h)
            total += tile * (h / w * tile) if w > tile else w * h
    return total / (height * width)
