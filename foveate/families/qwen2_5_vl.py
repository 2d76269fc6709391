"""Qwen2.5-VL: any image size, packed encoder with windows, 2 x 2 merger, M-RoPE, video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.encoder import PackedPath
from foveate.core.shape import EncoderShape, LinearShape, MediumShape, ModelShape, RowsPer
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TINY_TEXT, Family, TinyMedium
from foveate.families._resize import resized

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# What the tiny configs of this family and its relatives share.
TINY_MROPE_TEXT: Mapping[str, Any] = {
    **TINY_TEXT,
    "num_hidden_layers": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}
TINY_PACKED_VISION: Mapping[str, Any] = dict(
    depth=4, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, in_channels=3
)
TINY_IDS: Mapping[str, int] = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)
# Patches (t, h, w) of the media of tiny models, for windows of 4 x 4 patches and more: whole windows and partial ones.
_TINY_GRIDS = {"image": ((1, 8, 8), (1, 8, 12), (1, 4, 8)), "video": ((2, 4, 8), (3, 4, 4))}


class Qwen25VL(Family):
    """Qwen2_5_VLForConditionalGeneration.

    Class attributes:
        pixels: least and most pixels of an image after resizing, from the preprocessor config of the published checkpoints.
    """

    model_types = ("qwen2_5_vl",)
    title = "Qwen2.5-VL"
    anchor = True
    placeholders = {"image": "image_token_id", "video": "video_token_id"}
    host_inputs: ClassVar[tuple[str, ...]] = ("image_grid_thw", "video_grid_thw")
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "images and video of any size, M-RoPE, windowed packed encoder"
    pixels: ClassVar[tuple[int, int]] = (3_136, 12_845_056)

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        shapes: dict[str, list[MediumShape]] = {}
        for kind in self.placeholders:
            grids = inputs.get(f"{kind}_grid_thw")
            if grids is None and columns[kind]:
                raise InputError(
                    f"the prompt has {kind} placeholders but {kind}_grid_thw is missing: pass everything the processor returned"
                )
            rows = [] if grids is None else grids.tolist()
            shapes[kind] = [self._medium(config, kind, (int(t), int(h), int(w))) for t, h, w in rows]
        return shapes

    def encoder(self, config: Any) -> PackedPath | None:
        vision = config.vision_config
        full = getattr(vision, "fullatt_block_indexes", range(vision.depth))
        sides = getattr(vision, "deepstack_visual_indexes", ())
        return PackedPath(
            tower="model.visual",
            merger="merger",
            unit=vision.spatial_merge_size,
            used=vision.depth,
            side_mergers=tuple(f"deepstack_merger_list.{number}" for number in range(len(sides))),
            windowed=tuple(layer for layer in range(vision.depth) if layer not in full),
        )

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        patch = config.vision_config.patch_size
        unit = patch * config.vision_config.spatial_merge_size
        grids = [resized(size, unit, self.pixels) for size in sizes]
        return [self._medium(config, "image", (1, high // patch, wide // patch)) for high, wide in grids]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        # The processor's pixel bound for whole videos is not applied: the frame size is taken as given.
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        image = self.media_of_images(config, [size])[0]
        _, h, w = image.grid
        merge, together = config.vision_config.spatial_merge_size, config.vision_config.temporal_patch_size
        return self._medium(config, "video", (-(-frames // together), h * merge, w * merge))

    def _medium(self, config: Any, kind: str, patches: tuple[int, int, int]) -> MediumShape:
        vision = config.vision_config
        merge = vision.spatial_merge_size
        t, h, w = patches
        side = vision.window_size // merge // vision.patch_size  # window side in merged cells
        cells = (h // merge, w // merge)
        heights, widths = ([min(side, n - start) for start in range(0, n, side)] for n in cells)
        windows = tuple(high * wide * merge * merge for high in heights for wide in widths)
        return MediumShape(
            kind=kind,
            grid=(t, *cells),
            encoder_tokens=t * h * w,
            encoder_sequences=(h * w,) * t,
            encoder_windows=windows * t,
        )

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        full = set(vision.fullatt_block_indexes)
        encoder = EncoderShape(
            layers=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_heads,
            patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            gated_mlp=True,
            windowed_layers=tuple(layer for layer in range(vision.depth) if layer not in full),
        )
        merger = self._merger(vision, encoder, vision.out_hidden_size)
        return ModelShape(family="qwen2_5_vl", decoder=self.decoder_shape(config), encoder=encoder, projector=merger)

    def _merger(self, vision: Any, encoder: EncoderShape, outputs: int) -> tuple[LinearShape, ...]:
        merged = encoder.hidden * vision.spatial_merge_size**2
        return LinearShape(merged, merged, RowsPer.LEFT), LinearShape(merged, outputs, RowsPer.LEFT)

    def tiny_config(self) -> Any:
        from transformers import Qwen2_5_VLConfig

        vision = dict(hidden_size=32, intermediate_size=64, out_hidden_size=32, fullatt_block_indexes=[1, 3], window_size=16)
        return Qwen2_5_VLConfig(text_config={**TINY_MROPE_TEXT}, vision_config={**TINY_PACKED_VISION, **vision}, **TINY_IDS)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        vision = config.vision_config
        grids = _TINY_GRIDS[kind]
        t, h, w = grids[number % len(grids)]
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(t * h * w, width, generator=random)
        names = {"image": "pixel_values", "video": "pixel_values_videos"}
        ids = torch.full((t * h * w // vision.spatial_merge_size**2,), self.placeholder_ids(config)[kind])
        return TinyMedium(kind, ids, {names[kind]: pixels, f"{kind}_grid_thw": torch.tensor([[t, h, w]])})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        return {**super().tiny_batch(config, ids, media), "mm_token_type_ids": types}
