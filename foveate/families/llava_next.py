"""LLaVA-NeXT: an overview of the image, then all of it in high resolution without padding, each row with a newline token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.canvas import Canvas
from foveate.core.shape import MediumShape, ModelShape, RowsPer
from foveate.errors import InputError, UnsupportedModel
from foveate.families._base import TINY_TEXT, TINY_VISION, TinyMedium
from foveate.families.llava import Llava, prefix_tokens

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Images (height, width) of tiny models, for tiles of 16 pixels: wide and unpadded, high with padding, nearly square.
_TINY_SIZES = ((20, 40), (40, 17), (33, 30))


class LlavaNext(Llava):
    """LlavaNextForConditionalGeneration."""

    model_types = ("llava_next",)
    title = "LLaVA-NeXT"
    host_inputs: ClassVar[tuple[str, ...]] = ("image_sizes",)
    notes = "anyres: overview and unpadded tiles, newline tokens"

    def check(self, config: Any) -> None:
        super().check(config)
        if config.vision_feature_select_strategy == "full" and prefix_tokens(config.vision_config):
            raise UnsupportedModel(
                "vision_feature_select_strategy='full' keeps the class token of every tile, which leaves no grid to unpad: "
                "checkpoints with CLIP say 'default'"
            )

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        return {"image": self._images(config, inputs, columns["image"])}

    def _images(self, config: Any, inputs: Mapping[str, Any], columns: int) -> list[MediumShape]:
        sizes, pixels = inputs.get("image_sizes"), inputs.get("pixel_values")
        if sizes is None:
            if columns:
                raise InputError(
                    "the prompt has image placeholders but image_sizes is missing: pass everything the processor returned"
                )
            return []
        if pixels is not None and len(pixels) != len(sizes) and pixels[0].ndim == 4:
            raise InputError(f"image_sizes has {len(sizes)} rows, but pixel values for {len(pixels)} images are given")
        return self._of_call(config, [(int(height), int(width)) for height, width in sizes], inputs)

    def _of_call(self, config: Any, sizes: list[tuple[int, int]], inputs: Mapping[str, Any]) -> list[MediumShape]:
        return [self._tiled(config, *size) for size in sizes]

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return [self._tiled(config, height, width) for width, height in sizes]

    def _tiled(self, config: Any, height: int, width: int) -> MediumShape:
        """The shape of an image of this size in pixels."""
        if min(height, width) < 1:
            raise InputError(f"image of {width} x {height} pixels: sides are at least 1")
        base = self.image(config)
        tile, side = config.vision_config.image_size, base.grid[1]
        down, across = (length // tile for length in best_resolution((height, width), config.image_grid_pinpoints))
        box = _unpadded(down * side, across * side, height, width)
        h, w = self._shrunk(config, *box[2:])
        overview, tiles = Canvas.of_row((side, side), (side, side)), Canvas((down, across), (side, side), box, (h, w))
        return replace(
            base,
            crops=((1, h, w),) if h * w else (),
            canvases=(overview, tiles) if h * w else (overview,),
            separators=tuple(base.tokens + (w + 1) * row + w for row in range(h)),
            encoder_tokens=base.encoder_tokens * (1 + down * across),
            encoder_sequences=base.encoder_sequences * (1 + down * across),
            tiles=(down, across),
            pixels=(height, width),
        )

    def _shrunk(self, config: Any, h: int, w: int) -> tuple[int, int]:
        """The grid that is left of h x w cells in high resolution."""
        return h, w

    def model_shape(self, config: Any) -> ModelShape:
        # All tiles are projected before their padding is cut away.
        projector = self.projector(config, RowsPer.PATCH)
        return replace(super().model_shape(config), family=self.model_types[0], projector=projector)

    def tiny_config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

        text = LlamaConfig(**TINY_TEXT, num_hidden_layers=5)
        vision = CLIPVisionConfig(**{**TINY_VISION, "image_size": 16}, num_hidden_layers=3)
        pinpoints = [[16, 32], [32, 16], [32, 32]]
        return LlavaNextConfig(
            vision_config=vision, text_config=text, image_token_index=90, image_grid_pinpoints=pinpoints, image_seq_length=16
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        size = _TINY_SIZES[number % len(_TINY_SIZES)]
        shape, side = self._tiled(config, *size), config.vision_config.image_size
        pixels = torch.randn(1, len(shape.encoder_sequences), 3, side, side, generator=random)
        ids = torch.full((shape.tokens,), self.placeholder_ids(config)[kind])
        return TinyMedium(kind, ids, {"pixel_values": pixels, "image_sizes": torch.tensor([size])})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        most = max((len(medium.inputs["pixel_values"][0]) for medium in media if medium.kind == "image"), default=0)
        return super().tiny_batch(
            config, ids, [_padded(medium, most) if medium.kind == "image" else medium for medium in media]
        )


def best_resolution(size: tuple[int, int], resolutions: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (height, width) among `resolutions` that keeps most of an image's pixels, and of those the one with least padding.

    It is transformers' `select_best_resolution`, whose import would make every cost estimate wait for transformers.
    """
    height, width = size

    def merit(resolution: Sequence[int]) -> tuple[int, int]:
        high, wide = resolution
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), height * width)
        return kept, kept - high * wide

    high, wide = max(resolutions, key=merit)  # the first of equals, as there
    return high, wide


def _unpadded(h: int, w: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of an h x w grid that shows an image of these sides in pixels."""
    # Rounded as transformers rounds.
    if width / height > w / h:
        padding = (h - int(round(height * (w / width), 7))) // 2
        return padding, 0, h - 2 * padding, w
    padding = (w - int(round(width * (h / height), 7))) // 2
    return 0, padding, h, w - 2 * padding


def _padded(medium: TinyMedium, tiles: int) -> TinyMedium:
    """The medium with empty tiles after its own, as processors stack images of several sizes."""
    import torch

    pixels = medium.inputs["pixel_values"]
    padding = (0, 0) * 3 + (0, tiles - pixels.shape[1])
    return replace(medium, inputs={**medium.inputs, "pixel_values": torch.nn.functional.pad(pixels, padding)})
