from __future__ import annotations

import numpy as np

from foveate.demo.drawing import BAR_CLASS, render
from foveate.demo.samples import make_dense_sample, make_sample
from foveate.demo.scenes import COLORS, GRID, PATCH_PIXELS, Chart, Scene, make_picture

PICTURES = range(300)
SHADE_SPREAD = 40  # shades vary by 16, reduction mixes in a little background


def test_a_sample_depends_on_split_seed_and_index_only() -> None:
    for index in range(20):
        first, again = make_sample("train", 3, index), make_sample("train", 3, index)
        assert first == again
        assert np.array_equal(first.pixels, again.pixels)
    assert make_sample("train", 3, 0) != make_sample("train", 4, 0)
    assert make_sample("train", 3, 0) != make_sample("test", 3, 0)


def test_splits_share_no_texture() -> None:
    textures = {split: {make_picture(split, 1, i).texture for i in PICTURES} for split in ("train", "test")}
    assert not textures["train"] & textures["test"]


def test_pictures_are_96_pixels_of_rgb() -> None:
    pixels = make_sample("train", 1, 0).pixels
    assert pixels.shape == (96, 96, 3)
    assert pixels.dtype == np.uint8


def test_objects_do_not_overlap_and_stay_inside() -> None:
    for index in PICTURES:
        picture = make_picture("train", 1, index)
        if isinstance(picture, Chart):
            continue
        assert picture.objects
        for i, item in enumerate(picture.objects):
            assert item.radius < item.x < 96 - item.radius
            assert item.radius < item.y < 96 - item.radius
            for other in picture.objects[:i]:
                assert max(abs(item.x - other.x), abs(item.y - other.y)) > item.radius + other.radius


def test_the_centre_of_a_filled_shape_has_its_colour() -> None:
    for index in PICTURES:
        picture = make_picture("train", 1, index)
        if isinstance(picture, Chart):
            continue
        pixels = np.asarray(render(picture)).astype(int)
        for item in picture.objects:
            if item.shape != "ring":
                colour = pixels[int(item.y), int(item.x)]
                assert np.abs(colour - np.array(COLORS[item.color])).max() <= SHADE_SPREAD, (index, item)


def test_the_number_of_objects_can_be_limited() -> None:
    for index in PICTURES:
        picture = make_picture("train", 1, index, max_objects=3)
        if isinstance(picture, Scene):
            assert len(picture.objects) <= 3


def test_every_object_labels_the_patch_of_its_centre() -> None:
    for index in range(50):
        sample = make_dense_sample("train", 1, index)
        labels = sample.labels().reshape(2, GRID, GRID)
        for item in sample.picture.objects:
            row, column = int(item.y // PATCH_PIXELS), int(item.x // PATCH_PIXELS)
            assert labels[0, row, column] == 1 + list(COLORS).index(item.color)
        assert sample.tags().sum() >= 2


def test_charts_label_their_bars() -> None:
    charts = [s for s in (make_sample("train", 1, i) for i in PICTURES) if isinstance(s.picture, Chart)]
    assert len(charts) > 20
    assert all((sample.labels()[1] >= BAR_CLASS).any() for sample in charts)
