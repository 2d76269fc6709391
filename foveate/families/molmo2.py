"""Molmo2: a small copy and overlapping crops of an image, pooled by attention; all picture tokens see each other."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveate.core.shape import LinearShape, MediumShape, ModelShape
from foveate.errors import InputError, UnsupportedCombination
from foveate.families._base import TINY_TEXT, Family, TinyMedium

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor, nn

# Defaults of the processors: most crops of an image, patches that a crop shares with what is around it on either side, and
# the side of the square of patches that becomes one token.
_CROPS, _MARGIN, _POOLED = 8, 4, {"image": 2, "video": 3}
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_LOW_START, _START, _END, _COLUMN, _FRAME_START, _FRAME_END = 92, 93, 94, 95, 96, 97
# Crops (down, across) of the images and frames of the videos of tiny models.
_TINY_CROPS, _TINY_FRAMES = ((1, 1), (1, 4), (2, 1)), (2, 3)


class Molmo2(Family):
    """Molmo2ForConditionalGeneration. The small copy comes first, then all crops as one picture in raster order."""

    model_types = ("molmo2",)
    title = "Molmo2"
    host_inputs = ("image_grids", "video_grids", "image_num_crops")
    bidirectional = True
    notes = "images small and in crops, or video, whose tokens all see each other; layers of two rotaries"

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        given = [kind for kind, name in _PIXELS.items() if inputs.get(name) is not None]
        if not given:  # encoded before the call
            given = [kind for kind in _PIXELS if inputs.get(f"{kind}_grids") is not None]
        if len(given) > 1:
            raise UnsupportedCombination(
                f"{self.title} marks images and frames of videos with the same placeholder, and transformers takes one of both "
                "in a call: pass images and videos in different calls"
            )
        kind = given[0] if given else "image"
        grids = inputs.get(f"{kind}_grids")
        if grids is None and columns["image"]:
            raise InputError(
                f"the prompt has {kind} placeholders but {kind}_grids is missing: pass everything the processor returned"
            )
        rows = [] if grids is None else [[int(number) for number in row] for row in grids.tolist()]
        if kind == "video":
            return {"image": [self._video(config, frames, high, wide) for frames, high, wide in rows]}
        crops = inputs.get("image_num_crops")
        counts = [0] * len(rows) if crops is None else [int(count) for count in crops]
        return {"image": [self._image(config, row, count) for row, count in zip(rows, counts, strict=True)]}

    def _image(self, config: Any, grids: Sequence[int], crops: int) -> MediumShape:
        """An image by its two grids in tokens, the small copy's and that of all crops, and the encoder's rows."""
        small, patches = (1, grids[0], grids[1]), _side(config) ** 2
        whole = ((1, grids[2], grids[3]),)
        return MediumShape("image", small, encoder_tokens=crops * patches, encoder_sequences=(patches,) * crops, crops=whole)

    def _video(self, config: Any, frames: int, high: int, wide: int) -> MediumShape:
        patches = _side(config) ** 2
        grid = (frames, high, wide)
        return MediumShape("video", grid, encoder_tokens=frames * patches, encoder_sequences=(patches,) * frames)

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        shapes = []
        for width, height in sizes:
            if min(width, height) < 1:
                raise InputError(f"image of {width} x {height} pixels: sides are at least 1")
            side, patch = _side(config), config.vision_config.patch_size
            down, across = _layout(width, height, side, patch)
            grids = [_tokens(side, "image"), *(_tokens(_canvas(count, side), "image") for count in (down, across))]
            shapes.append(self._image(config, [grids[0], *grids], down * across + 1))
        return shapes

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        side = _tokens(_side(config), "video")
        return self._video(config, frames, side, side)

    def model_shape(self, config: Any) -> ModelShape:
        vision, adapter, encoder = config.vision_config, config.adapter_config, self.encoder_shape(config)
        read, width = vision.hidden_size * len(adapter.vision_feature_layer), adapter.num_attention_heads * adapter.head_dim
        kv_width = adapter.num_key_value_heads * adapter.head_dim
        # One query per token, keys and values of the patches that it pools; then a gated MLP into the decoder.
        pooled = tuple(LinearShape(read, kv_width, kind=kind) for kind, side in _POOLED.items() for _ in range(2 * side * side))
        # The query's products with those keys, and the mean of the values.
        pooled += tuple(LinearShape(width, side * side, kind=kind) for kind, side in _POOLED.items() for _ in range(2))
        into = LinearShape(adapter.hidden_size, adapter.intermediate_size)
        return ModelShape(
            family="molmo2",
            decoder=self.decoder_shape(config),
            encoder=encoder,
            projector=(
                LinearShape(read, width),
                *pooled,
                LinearShape(width, adapter.hidden_size),
                into,
                into,
                LinearShape(adapter.intermediate_size, adapter.text_hidden_size),
            ),
        )

    def tiny_config(self) -> Any:
        from transformers import Molmo2Config

        heads = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
        text = {name: value for name, value in TINY_TEXT.items() if not name.endswith("_token_id")}
        rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        return Molmo2Config(
            text_config=dict(
                **text,
                head_dim=8,
                num_hidden_layers=5,
                additional_vocab_size=3,
                rope_parameters=rope,
                rope_scaling_layers=[1, 3],
            ),
            vision_config=dict(**heads, intermediate_size=64, num_hidden_layers=2, image_size=[36, 36], patch_size=4),
            adapter_config=dict(**heads, intermediate_size=48, text_hidden_size=32, vision_feature_layer=[1, 0]),
            image_patch_id=90,
            low_res_image_start_token_id=_LOW_START,
            image_start_token_id=_START,
            image_end_token_id=_END,
            frame_start_token_id=_FRAME_START,
            frame_end_token_id=_FRAME_END,
        )

    def mend(self, model: nn.Module) -> None:
        """Features are added to the embeddings of their placeholders: those of small random weights would drown in rounding."""
        for name, parameter in model.named_parameters():
            if "multi_modal_projector" in name and parameter.ndim >= 2:
                parameter.data.mul_(20.0)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        side, pool = _side(config), _POOLED[kind]
        whole = torch.arange(side * side).view(side, side)
        if kind == "image":
            down, across = _TINY_CROPS[number % len(_TINY_CROPS)]
            rows = 1 + down * across
            parts = [_pooling(whole, pool), _pooling(side * side + _raster(down, across, side), pool)]
            grids = [[len(part), len(part[0])] for part in parts]
            ids = [_LOW_START, *([90] * grids[0][1] + [_COLUMN]) * grids[0][0], _END]
            ids += [_START, *([90] * grids[1][1] + [_COLUMN]) * grids[1][0], _END]
            given = {"image_grids": torch.tensor([grids[0] + grids[1]]), "image_num_crops": torch.tensor([rows])}
        else:
            rows = _TINY_FRAMES[number % len(_TINY_FRAMES)]
            parts = [_pooling(whole + frame * side * side, pool) for frame in range(rows)]
            high, wide = len(parts[0]), len(parts[0][0])
            ids = [token for second in range(rows) for token in (20 + second, _FRAME_START, *[90] * (high * wide), _FRAME_END)]
            given = {"video_grids": torch.tensor([[rows, high, wide]])}
        pixels = torch.randn(rows, side * side, 3 * config.vision_config.patch_size**2, generator=random)
        places = torch.cat([part.flatten(0, 1) for part in parts])
        return TinyMedium(kind, torch.tensor(ids), {_PIXELS[kind]: pixels, f"{kind}_token_pooling": places, **given})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        import torch

        inputs, before = super().tiny_batch(config, ids, media), 0
        for name in ("image_token_pooling", "video_token_pooling"):
            parts = []
            for medium in media:
                if name in medium.inputs:  # patches are counted through all media of a call
                    places = medium.inputs[name]
                    parts.append(torch.where(places >= 0, places + before, -1))
                    before += medium.inputs[_PIXELS[medium.kind]].shape[:2].numel()
            if parts:
                inputs[name] = torch.cat(parts)
        types = ids == 90
        for bracket in (_LOW_START, _START, _END, _COLUMN, _FRAME_START, _FRAME_END):
            types |= ids == bracket
        return {**inputs, "mm_token_type_ids": types.long()}


def _side(config: Any) -> int:
    """Patches along a side of a crop."""
    return int(config.vision_config.image_size[0] // config.vision_config.patch_size)


def _canvas(crops: int, side: int) -> int:
    """Patches along a side of the picture that so many crops make, where they share their margins."""
    return crops * (side - 2 * _MARGIN) + 2 * _MARGIN


def _tokens(patches: int, kind: str) -> int:
    """Tokens along a side of so many patches."""
    return -(-patches // _POOLED[kind])


def _layout(width: int, height: int, side: int, patch: int) -> tuple[int, int]:
    """Crops (down, across) of an image: those that must enlarge it least, or else shrink it least."""
    layouts = [(down, across) for down in range(1, _CROPS + 1) for across in range(1, _CROPS // down + 1)]
    layouts.sort(key=lambda layout: layout[0] * layout[1])
    window, shared = (side - 2 * _MARGIN) * patch, 2 * _MARGIN * patch
    scales = [
        min(_single(down * window, height - shared), _single(across * window, width - shared)) for down, across in layouts
    ]
    enlarging = [scale for scale in scales if scale >= 1]
    return layouts[scales.index(min(enlarging) if enlarging else max(scales))]


def _single(above: int, below: int) -> float:
    """A quotient in single precision, in which the processor compares them."""
    if below == 0:
        return float("inf")
    return array("f", [above / below])[0]


def _raster(down: int, across: int, side: int) -> Tensor:
    """Patches of crops in raster order of their picture [high, wide]; of what two crops share each has its half."""
    import torch

    window = side - 2 * _MARGIN

    def places(crops: int) -> tuple[Tensor, Tensor]:
        at = torch.arange(_canvas(crops, side))
        crop = ((at - _MARGIN) // window).clamp(0, crops - 1)
        return crop, at - crop * window

    (row, y), (column, x) = places(down), places(across)
    crop = row[:, None] * across + column[None]
    return crop * side * side + y[:, None] * side + x[None]


def _pooling(places: Tensor, pool: int) -> Tensor:
    """The patches of each token [rows, columns, pool * pool], -1 where a token hangs over the edge."""
    import torch

    (high, wide) = places.shape
    over = [-size % pool for size in (wide, high)]
    around = [part for rest in over for part in (rest // 2, (rest + 1) // 2)]
    padded = torch.nn.functional.pad(places, around, value=-1)
    cells = padded.view(padded.shape[0] // pool, pool, padded.shape[1] // pool, pool)
    return cells.transpose(1, 2).flatten(2)
