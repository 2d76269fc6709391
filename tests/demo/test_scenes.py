from __future__ import annotations

from itertools import pairwise

import numpy as np

from foveate.demo.drawing import render
from foveate.demo.pages import Page
from foveate.demo.pictures import COLORS, DIRECTIONS, PHOTO, Scene, Sign
from foveate.demo.samples import make_sample
from foveate.demo.scenes import make_clip, make_pair, make_picture

PICTURES = range(300)
SHADE_SPREAD = 40  # shades vary by 16, reduction mixes in a little background


def test_a_sample_depends_on_split_seed_and_index_only() -> None:
    for index in range(20):
        first, again = make_sample("train", 3, index), make_sample("train", 3, index)
        assert first == again
        assert np.array_equal(first.pixels(), again.pixels())
    assert make_sample("train", 3, 0) != make_sample("train", 4, 0)
    assert make_sample("train", 3, 0) != make_sample("test", 3, 0)


def test_splits_share_no_texture() -> None:
    textures = {split: {make_picture(split, 1, i).texture for i in PICTURES} for split in ("train", "test")}
    assert not textures["train"] & textures["test"]


def test_pictures_are_96_pixels_of_rgb() -> None:
    pixels = make_sample("train", 1, 0).pixels()
    assert pixels.shape == (1, 96, 96, 3)
    assert make_sample("train", 1, 0, kind="pair").pixels().shape == (2, 96, 96, 3)
    assert make_sample("train", 1, 0, kind="clip").pixels().shape == (4, 96, 96, 3)
    assert pixels.dtype == np.uint8


def test_objects_do_not_overlap_and_stay_inside() -> None:
    for index in PICTURES:
        picture = make_picture("train", 1, index)
        if not isinstance(picture, Scene):
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
        if not isinstance(picture, Scene):
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


def test_signs_fit() -> None:
    signs = [s for s in (make_sample("train", 1, i) for i in PICTURES) if isinstance(s.picture, Sign)]
    assert len(signs) > 30
    for sample in signs:
        assert isinstance(sample.picture, Sign)
        boxes = [box for word in sample.picture.words for box in word.letter_boxes()]
        assert all(x0 >= 0 and y0 >= 0 and x1 <= 96 and y1 <= 96 for x0, y0, x1, y1 in boxes)


def test_the_ink_of_a_letter_is_where_its_box_says() -> None:
    for index in PICTURES:
        picture = make_picture("train", 1, index)
        if isinstance(picture, Sign):
            pixels = np.asarray(render(picture)).astype(int)
            for word in picture.words:
                for x0, y0, x1, y1 in word.letter_boxes():
                    inside = pixels[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1]
                    assert (np.abs(inside - np.array(COLORS[word.color])).max(-1) <= SHADE_SPREAD).any(), (index, word)


def test_one_object_of_a_clip_moves_straight_on() -> None:
    for index in range(100):
        clip = make_clip("train", 1, index)
        *still, movers = zip(*[frame.objects for frame in clip.frames], strict=True)
        assert all(len(set(objects)) == 1 for objects in still)
        steps = {(round(b.x - a.x, 4), round(b.y - a.y, 4)) for a, b in pairwise(movers)}
        assert len(steps) == 1
        dx, dy = steps.pop()
        assert (np.sign(dx), np.sign(dy)) == DIRECTIONS[clip.direction]
        assert all(item.radius < v < 96 - item.radius for item in movers for v in (item.x, item.y))


def test_the_scenes_of_a_pair_differ() -> None:
    for index in range(50):
        first, second = make_pair("train", 1, index)
        assert first.objects != second.objects


def test_a_picture_shows_the_same_at_every_size() -> None:
    for index in range(40):
        picture = make_picture("train", 1, index, detailed=index % 2 == 0)
        small, large = np.asarray(render(picture)).astype(int), np.asarray(render(picture, 192)).astype(int)
        assert large.shape == (192, 192, 3)
        halved = large.reshape(96, 2, 96, 2, 3).mean((1, 3))
        assert np.abs(small - halved).mean() < 6, index


def test_a_detailed_world_varies_more() -> None:
    pictures = [make_picture("train", 1, index, detailed=True) for index in PICTURES]
    kinds = {type(picture).__name__ for picture in pictures}
    assert kinds == {"Scene", "Chart", "Sign", "Page"}
    assert 0.2 < np.mean([PHOTO in picture.texture for picture in pictures]) < 0.6
    assert 0.3 < np.mean([isinstance(picture, Page) for picture in pictures]) < 0.55
