"""MiniCPM-V 4.6: a hybrid decoder; an overview and slices of any size, merged 2 x 2 inside the encoder and once behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, EncoderShape, LinearShape, MediumShape, ModelShape
from foveate.errors import InputError, UnsupportedCombination, UnsupportedModel
from foveate.families._base import TINY_VISION, Family, TinyMedium
from foveate.families.qwen3_5 import TINY_HYBRID_TEXT, with_delta_nets

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

_SIZES = {"image": "target_sizes", "video": "target_sizes_videos"}
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
# Of the image processor, as its class has them: pixels along a side of a slice, and the most slices.
_SLICE, _MOST_SLICES = 448, 9
# Patches (height, width) of the overview and the slices of tiny media; slices beside each other in the first number of columns.
_TINY_TILES = (((4, 8),), ((4, 4), (8, 4), (8, 4)), ((8, 4),))
_TINY_FRAMES = (((4, 4),) * 3, ((4, 8),) * 2, ((8, 4),) * 2)
# What stands around the overview, around a slice, and between rows of slices.
START, END, SLICE_START, SLICE_END, NEWLINE = 92, 93, 94, 95, 96


class MiniCPMV46(Family):
    """MiniCPMV4_6ForConditionalGeneration. Each frame of a video is a medium of its own, as an image is."""

    model_types = ("minicpmv4_6",)
    title = "MiniCPM-V 4.6"
    placeholders = {"image": "image_token_id", "video": "video_token_id"}
    host_inputs = ("input_ids", *_SIZES.values())
    notes = "hybrid: layers with a state see survivors only; images of any size, large ones in slices, each frame by itself"

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        side, ids = _side(config, inputs.get("downsample_mode")), inputs.get("input_ids")
        shapes: dict[str, list[MediumShape]] = {}
        for kind, token in self.placeholder_ids(config).items():
            sizes = inputs.get(_SIZES[kind])
            if columns[kind] and (ids is None or sizes is None):
                raise InputError(
                    f"{self.title} tells which slices make one {kind} by input_ids and {_SIZES[kind]}: pass everything the "
                    "processor returned"
                )
            tiles = [] if sizes is None else [(int(high), int(wide)) for high, wide in sizes.tolist()]
            shapes[kind] = []
            first = 0
            for row in [] if ids is None else ids.cpu():
                groups = list(_tiles_by_medium(row, token, tiles[first:], side))
                first += sum(map(len, groups))
                shapes[kind] += [_medium(kind, group, side) for group in groups]
            if first != len(tiles):
                raise InputError(f"the prompt has placeholders for {first} slices of {kind}s, but {len(tiles)} are given")
        return shapes

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        side, patch = _side(config), config.vision_config.patch_size
        for width, height in sizes:
            if min(width, height) < 1:
                raise InputError(f"image of {width} x {height} pixels: sides are at least 1")
        return [_medium("image", _tiles(width, height, patch, side), side) for width, height in sizes]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        raise UnsupportedCombination(
            f"{self.title} sees each frame of a video as a medium of its own, as an image of its size; "
            "there is no medium that is a video"
        )

    def model_shape(self, config: Any) -> ModelShape:
        encoder, hidden = self._encoder(config), config.vision_config.hidden_size
        inner, out = 4 * hidden, config.get_text_config().hidden_size
        projector = (LinearShape(inner, inner), LinearShape(inner, out))
        return ModelShape(self.model_types[0], self.decoder_shape(config), encoder, projector)

    def decoder_shape(self, config: Any) -> DecoderShape:
        shape = with_delta_nets(config.get_text_config(), super().decoder_shape(config), self.stateful_layers(config))
        return replace(shape, all_logits=True)

    def _encoder(self, config: Any) -> EncoderShape:
        vision, shape = config.vision_config, self.encoder_shape(config)
        hidden, inner = vision.hidden_size, vision.intermediate_size
        # Attention among four patches, their projections, and an MLP that makes one of them.
        merger = 4 * (4 * hidden**2 + 2 * 4 * hidden) + 4 * hidden * 4 * inner + 4 * inner * hidden
        return replace(shape, shrinks_after=vision.insert_layer_id, shrinking=merger)

    def check(self, config: Any) -> None:
        if config.merger_times != 1:
            raise UnsupportedModel(f"{self.title} with merger_times={config.merger_times}: published models merge once")

    def tiny_config(self) -> Any:
        from transformers import MiniCPMV4_6Config

        return MiniCPMV4_6Config(text_config={**TINY_HYBRID_TEXT, "model_type": "qwen3_5_text"}, **self._tiny_parts())

    def _tiny_parts(self) -> dict[str, Any]:
        vision = {**TINY_VISION, "num_hidden_layers": 3, "insert_layer_id": 1}
        return dict(vision_config=vision, insert_layer_id=1, image_token_id=90, video_token_id=91)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        patch, token = config.vision_config.patch_size, self.placeholder_ids(config)[kind]
        tiles, side = (_TINY_FRAMES if kind == "video" else _TINY_TILES)[number % 3], _side(config)
        ids: list[int] = []
        for at, (high, wide) in enumerate(tiles):
            own = [token] * (high * wide // side**2)
            if kind == "video" or not at:
                ids += [START, *own, END]
            else:
                ids += [NEWLINE] * (at > 1) + [SLICE_START, *own, SLICE_END]
        patches = sum(high * wide for high, wide in tiles)
        pixels = torch.randn(1, 3, patch, patches * patch, generator=random)
        return TinyMedium(kind, torch.tensor(ids), {_PIXELS[kind]: pixels, _SIZES[kind]: torch.tensor(tiles)})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        """All patches of a call are one row."""
        import torch

        packed = {}
        for kind, name in _PIXELS.items():
            own = [medium.inputs for medium in media if medium.kind == kind]
            if own:
                packed[name] = torch.cat([inputs[name] for inputs in own], dim=-1)
                packed[_SIZES[kind]] = torch.cat([inputs[_SIZES[kind]] for inputs in own])
        return packed


def _side(config: Any, mode: str | None = None) -> int:
    """Patches along a side of a visual token; a call may ask for four times as many tokens."""
    return 2 if (mode or config.downsample_mode) == "4x" else 4


def _tiles_by_medium(ids: Tensor, token: int, tiles: Sequence[tuple[int, int]], side: int) -> Iterator[list[tuple[int, int]]]:
    """The tiles (height, width) in patches of each image or frame of one prompt [S], of which the first of `tiles` is next.

    An overview stands behind another token than a slice does, and a prompt's first run of placeholders is an overview.
    """
    places, position, group = (ids == token).nonzero().flatten().tolist(), 0, list[tuple[int, int]]()
    opens: int | None = None
    for high, wide in tiles:
        if position == len(places):
            break
        start, count = places[position], (high // side) * (wide // side)
        if position + count > len(places) or places[position + count - 1] - start != count - 1:
            raise InputError(
                f"a slice fills {count} placeholder tokens in a row, but fewer follow each other; "
                "let the model's own processor expand the prompt"
            )
        before = int(ids[start - 1]) if start else -1
        opens = before if opens is None else opens
        if before == opens and group:
            yield group
            group = []
        group.append((high, wide))
        position += count
    if position < len(places):
        raise InputError("the prompt has more placeholder tokens than its slices fill")
    if group:
        yield group


def _medium(kind: str, tiles: Sequence[tuple[int, int]], side: int) -> MediumShape:
    grids = [(1, high // side, wide // side) for high, wide in tiles]
    patches = tuple(high * wide for high, wide in tiles)
    return MediumShape(kind, grids[0], encoder_tokens=sum(patches), encoder_sequences=patches, crops=tuple(grids[1:]))


def _tiles(width: int, height: int, patch: int, side: int) -> list[tuple[int, int]]:
    """Overview and slices (height, width) in patches of an image of this size in pixels, by the processor's rules."""
    unit = patch * side
    layout = _layout(width, height)
    overview = _fitted(width, height, unit, enlarges=layout is None)
    tiles = [overview]
    if layout is not None:
        down, across = layout
        own = _fitted(_whole(width, across) / across, _whole(height, down) / down, unit, enlarges=True)
        tiles += [own] * (down * across)
    return [(high // patch, wide // patch) for high, wide in tiles]


def _whole(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)


def _fitted(width: float, height: float, unit: int, enlarges: bool) -> tuple[int, int]:
    """(height, width) in pixels: about as many as a slice has, or as the image has where that is less; whole tokens."""
    if enlarges or width * height > _SLICE**2:
        ratio = width / height
        height = int(_SLICE / math.sqrt(ratio))
        width = int(height * ratio)
    return _whole(height, unit), _whole(width, unit)


def _layout(width: int, height: int) -> tuple[int, int] | None:
    """Slices (below each other, beside each other) whose aspect ratio is nearest to the image's; None for a small image."""
    wanted = min(math.ceil(width * height / _SLICE**2), _MOST_SLICES)
    if wanted <= 1:
        return None
    best, nearest = (1, 1), math.inf
    for count in (wanted - 1, wanted, wanted + 1):
        if count == 1 or count > _MOST_SLICES:
            continue
        for down in (rows for rows in range(1, count + 1) if count % rows == 0):
            error = abs(math.log(width / height) - math.log(count // down / down))
            if error < nearest or (error == nearest and down > best[0]):
                best, nearest = (down, count // down), error
    return best
