"""Parts cover a medium's grid tokens once and in order, and show what the encoder saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import families
from foveate.core.shape import MediumShape
from foveate.viz.parts import is_tiled, parts_of, tile_pictures
from tests import tiny


def shapes_of(family: str, kind: str = "image") -> list[MediumShape]:
    """Shapes of the tiny media of a family."""
    entry = families.get(family)
    config = entry.tiny_config()
    shapes = []
    for number in range(3):
        medium = entry.tiny_medium(config, kind, number, torch.Generator().manual_seed(0))
        columns = {name: int((medium.ids == token).sum()) for name, token in entry.placeholder_ids(config).items()}
        # Some families tell of a video's frames by the placeholders of images.
        found = entry.media(config, {"input_ids": medium.ids[None], **medium.inputs}, columns)
        shapes += [shape for by_kind in found.values() for shape in by_kind]
    return shapes


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_parts_cover_the_grid_tokens_once_and_in_order(family):
    for kind in ("image", "video") if family in tiny.VIDEO_FAMILIES else ("image",):
        for shape in shapes_of(family, kind):
            parts = parts_of(shape, "x", [None])
            assert [part.start for part in parts] == [0, *(part.stop for part in parts)][:-1]
            assert parts[-1].stop == shape.grid_tokens
            assert len({part.title for part in parts}) == len(parts) == len(shape.pieces)


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_tiles_are_told_from_grids_that_show_the_whole_image(family):
    for shape in shapes_of(family):
        each_has_one = len(shape.encoder_sequences) == len(shape.grids)
        assert is_tiled(shape) == bool(shape.crops and each_has_one and not shape.canvases)


def test_frames_and_parts_have_names_of_their_own():
    video = parts_of(MediumShape("video", (2, 3, 4)), "clip", [None, None])
    assert [part.title for part in video] == ["clip, frame 1 of 2", "clip, frame 2 of 2"]
    assert [(part.rows, part.columns) for part in video] == [(3, 4)] * 2
    cut = parts_of(MediumShape("image", (1, 2, 2), crops=((1, 2, 4),)), "photo", [Image.new("RGB", (80, 40))])
    assert [part.title for part in cut] == ["photo, part 1 of 2", "photo, part 2 of 2"]
    assert cut[1].aspect == 0.5
    assert video[0].aspect == 0.75


def test_tiles_come_back_as_the_processor_cut_them():
    pictures = [Image.effect_mandelbrot((8, 8), (-2, -1.5, 1, 1.5), number).convert("RGB") for number in (10, 20, 30)]
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    one = MediumShape("image", (1, 2, 2))
    shapes = [MediumShape("image", (1, 2, 2), crops=((1, 2, 2),)), one]
    for given in (pixels, pixels[None]):
        back = tile_pictures(given, shapes, mean, std)
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(back, pictures, strict=True))
    assert tile_pictures(pixels, [one], mean, std) == []
    assert tile_pictures(torch.zeros(16, 1176), shapes, mean, std) == []
