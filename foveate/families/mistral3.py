"""Mistral Small 3.1 and its relatives: a Pixtral encoder for images of any size, 2 x 2 patches merged into one token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveate.core.encoder import RasterPath
from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TINY_TEXT, TINY_VISION, Family, TinyMedium, used_layers

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Visual tokens (h, w) of the images of tiny models, and the tokens that close a row and an image.
_TINY_GRIDS = ((5, 6), (3, 7), (6, 4))
_BREAK, _END = 92, 93


class Mistral3(Family):
    """Mistral3ForConditionalGeneration.

    Images that are encoded in one call are one masked sequence under eager and sdpa attention, which multiplies patches of
    different images too; costs count each image for itself, as flash attention computes them.
    """

    model_types = ("mistral3",)
    title = "Mistral 3"
    host_inputs = ("image_sizes",)
    unsupported = {SiteKind.PIXELS: NO_PIXELS}
    notes = "images of any size, 2 x 2 merger, break tokens between rows are text"

    def merge(self, config: Any) -> int:
        """Patches along a side of a visual token."""
        return int(config.spatial_merge_size)

    def rounding(self, config: Any) -> int:
        """Resized images have sides of whole multiples of this many pixels."""
        return int(config.vision_config.patch_size) * self.merge(config)

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        import torch

        sizes = inputs.get("image_sizes")
        if sizes is None:
            if columns["image"]:
                raise InputError(
                    "the prompt has image placeholders but image_sizes is missing: pass everything the processor returned"
                )
            return {"image": []}
        return {"image": [self._medium(config, int(high), int(wide)) for high, wide in torch.as_tensor(sizes).tolist()]}

    def _medium(self, config: Any, high: int, wide: int) -> MediumShape:
        """An image of this height and width in pixels after resizing."""
        patch = config.vision_config.patch_size
        unit = patch * self.merge(config)
        patches = (high // patch) * (wide // patch)
        return MediumShape("image", (1, high // unit, wide // unit), encoder_tokens=patches, encoder_sequences=(patches,))

    def encoder(self, config: Any) -> RasterPath | None:
        vision = config.vision_config
        return RasterPath(
            tower="model.vision_tower",
            merger="model.multi_modal_projector",
            attention="attention",
            unit=self.merge(config),
            patch=vision.patch_size,
            used=used_layers(vision.num_hidden_layers, config.vision_feature_layer),
        )

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        # Published checkpoints resize to at most the encoder's image_size along the longer side.
        longest, unit = config.vision_config.image_size, self.rounding(config)
        return [self._medium(config, *_resized(width, height, longest, unit)) for width, height in sizes]

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        merged = vision.hidden_size * self.merge(config) ** 2
        return ModelShape(
            family="mistral3",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config, gated_mlp=True),
            projector=(
                LinearShape(merged, vision.hidden_size),
                LinearShape(vision.hidden_size, text.hidden_size),
                LinearShape(text.hidden_size, text.hidden_size),
            ),
        )

    def tiny_config(self) -> Any:
        from transformers import Mistral3Config

        return Mistral3Config(**self._tiny_parts())

    def _tiny_parts(self) -> dict[str, Any]:
        text = dict(**TINY_TEXT, model_type="mistral", num_hidden_layers=5, sliding_window=None)
        vision = dict(**TINY_VISION, model_type="pixtral", num_hidden_layers=2)
        return dict(text_config=text, vision_config=vision, image_token_index=90, vision_feature_layer=-1)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        h, w = _TINY_GRIDS[number % len(_TINY_GRIDS)]
        unit = config.vision_config.patch_size * self.merge(config)
        row = [config.image_token_id] * w
        ids = torch.tensor([*row, _BREAK] * (h - 1) + [*row, _END])
        pixels = torch.randn(1, 3, h * unit, w * unit, generator=random)
        return TinyMedium(kind, ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[h * unit, w * unit]])})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        """Pictures of several sizes are filled up with black to the right and below."""
        import torch

        if not media:
            return {}
        sizes = torch.cat([medium.inputs["image_sizes"] for medium in media])
        high, wide = sizes.amax(0).tolist()
        pixels = [medium.inputs["pixel_values"] for medium in media]
        padded = [torch.nn.functional.pad(one, (0, wide - one.shape[3], 0, high - one.shape[2])) for one in pixels]
        return {"pixel_values": torch.cat(padded), "image_sizes": sizes}


def _resized(width: int, height: int, longest: int, unit: int) -> tuple[int, int]:
    """(height, width) after Pixtral's resize: the longer side is at most `longest`, both are rounded up to whole units."""
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    if min(width, height) < 1:
        raise InputError(f"image of {width} x {height} pixels after resizing to at most {longest}: it is too thin; crop it")
    return math.ceil(height / unit) * unit, math.ceil(width / unit) * unit
