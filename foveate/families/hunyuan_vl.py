"""HunYuan-VL: images of any size, a line token after each row and one on either end; rotary axes that name the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import LinearShape, MediumShape, ModelShape, RowsPer
from foveate.core.site import SiteKind
from foveate.families._base import NO_PIXELS, TINY_TEXT, Family, TinyMedium
from foveate.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Patches (t, h, w) of the images of tiny models.
_TINY_GRIDS = ((1, 8, 8), (1, 8, 12), (1, 4, 8))


class HunYuanVL(Qwen2VL):
    """HunYuanVLForConditionalGeneration. Begin, line and end tokens look like visual tokens in the prompt; they stay."""

    model_types = ("hunyuan_vl",)
    title = "HunYuan-VL"
    placeholders = {"image": "image_token_id"}
    host_inputs = ("image_grid_thw",)
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its merger is a convolution that needs the whole picture",
    }
    notes = "images of any size, line tokens stay, rotary axes for column, row and number of the image"
    pixels = (262_144, 4_194_304)  # of the image processor's class

    def encoder(self, config: Any) -> None:
        return None

    def _medium(self, config: Any, kind: str, patches: tuple[int, int, int]) -> MediumShape:
        shape = super()._medium(config, kind, patches)
        _, high, wide = shape.grid
        lines = tuple(1 + row * (wide + 1) + wide for row in range(high))
        return replace(shape, separators=(0, *lines, high * (wide + 1) + 1))

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        return Family.media_of_video(self, config, size, frames)

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        hidden, out = vision.hidden_size, LinearShape(4 * vision.hidden_size, text.hidden_size)
        return ModelShape(
            family="hunyuan_vl",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(
                LinearShape(hidden * vision.spatial_merge_size**2, 2 * hidden),
                LinearShape(2 * hidden, 4 * hidden),
                out,
                replace(out, rows_per=RowsPer.LINE),  # line tokens pass the last product too
            ),
        )

    def tiny_config(self) -> Any:
        from transformers import HunYuanVLConfig

        # The last axis counts images through a whole batch in transformers, so that a row in company is rotated otherwise than
        # alone. It gets no dimension here; a test of its own gives it one.
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1, 0]}
        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, patch_size=4)
        return HunYuanVLConfig(
            text_config=dict(**TINY_TEXT, num_hidden_layers=5, head_dim=8, rope_parameters=rope),
            vision_config=dict(**vision, max_image_size=32),
            image_token_id=90,
            im_start_id=92,
            im_end_id=93,
            tie_word_embeddings=False,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        t, h, w = _TINY_GRIDS[number % len(_TINY_GRIDS)]
        pixels = torch.randn(t * h * w, 3 * config.vision_config.patch_size**2, generator=random)
        run = [config.image_token_id] * self._medium(config, kind, (t, h, w)).tokens
        ids = torch.tensor([config.im_start_id, *run, config.im_end_id])
        return TinyMedium(kind, ids, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[t, h, w]])})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        types = (ids == config.image_token_id).int()
        return {**Family.tiny_batch(self, config, ids, media), "mm_token_type_ids": types}
