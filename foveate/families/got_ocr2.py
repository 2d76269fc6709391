"""GOT-OCR 2: a SAM encoder and strided convolutions make 16 x 16 tokens of a page; pages or tiles stand in one run."""

from __future__ import annotations

from typing import Any

from foveate.core.shape import EncoderShape, LinearShape, MediumShape, ModelShape, RowsPer
from foveate.families._base import TINY_TEXT
from foveate.families._tiles import TiledFamily

# Patches along a side of a token: each of the two convolutions halves a side.
_UNIT = 4


class GotOcr2(TiledFamily):
    """GotOcr2ForConditionalGeneration.

    No stage acts inside the encoder: its windows, its relative positions and the convolutions after it need the whole picture.
    """

    model_types = ("got_ocr2", "pp_chart2table")
    title = "GOT-OCR 2"
    notes = "one grid per image, SAM encoder, tiles and pages on request"

    def tile(self, config: Any) -> MediumShape:
        vision = config.vision_config
        side, window = vision.image_size // vision.patch_size, vision.window_size
        across = -(-side // window) if window else 0  # windows at the border are filled up
        return MediumShape(
            kind="image",
            grid=(1, side // _UNIT, side // _UNIT),
            encoder_tokens=side**2,
            encoder_sequences=(side**2,),
            encoder_windows=(window**2,) * across**2,
        )

    def tiles_of_size(self, config: Any, width: int, height: int) -> int:
        return 1  # the processor cuts nothing unless it is asked to

    def model_shape(self, config: Any) -> ModelShape:
        vision, hidden = config.vision_config, config.get_text_config().hidden_size
        neck, wide = vision.output_channels, 2 * vision.output_channels
        encoder = EncoderShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.mlp_dim,
            heads=vision.num_attention_heads,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            windowed_layers=tuple(n for n in range(vision.num_hidden_layers) if n not in vision.global_attn_indexes),
            relative_positions=vision.use_rel_pos,
        )
        convolutions = (
            LinearShape(vision.hidden_size, neck, RowsPer.PATCH),
            LinearShape(9 * neck, neck, RowsPer.PATCH),
            LinearShape(4 * 9 * neck, wide),  # it has four outputs for each token
            LinearShape(9 * wide, hidden),
        )
        return ModelShape("got_ocr2", self.decoder_shape(config), encoder, (*convolutions, LinearShape(hidden, hidden)))

    def tiny_config(self) -> Any:
        from transformers import GotOcr2Config

        vision: dict[str, Any] = dict(
            hidden_size=32, output_channels=16, num_hidden_layers=3, num_attention_heads=4, mlp_dim=64
        )
        vision |= dict(image_size=24, patch_size=2, window_size=5, global_attn_indexes=[1], initializer_range=0.02)
        text = dict(**TINY_TEXT, model_type="qwen2", num_hidden_layers=5)
        return GotOcr2Config(text_config=text, vision_config=vision, image_token_index=90, tie_word_embeddings=False)

    def tiny_ids(self, run: list[int], tiles: int) -> list[int]:
        return [92, *run * tiles, 93]
