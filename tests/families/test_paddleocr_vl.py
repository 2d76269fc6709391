"""PaddleOCR-VL: grids of its own resize rule, and features that land where the projector puts them."""

from __future__ import annotations

import random

import pytest
import torch

from foveate import families
from foveate.errors import InputError, UnsupportedCombination
from tests import tiny
from tests.families.features import flat, painted, places
from tests.families.processors import image, image_processor

pytestmark = pytest.mark.skipif("paddleocr_vl" not in tiny.ALL_FAMILIES, reason="this transformers has no PaddleOCR-VL")
FAMILY = families.get("paddleocr_vl")


def config():
    from transformers import PaddleOCRVLConfig

    return PaddleOCRVLConfig(text_config={}, vision_config={})


def test_many_sizes_give_the_grids_of_the_resize_rule():
    rules = pytest.importorskip("transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl")
    rng, made, refused = random.Random(0), config(), 0
    sizes = [(rng.randint(1, 5000), rng.randint(1, 5000)) for _ in range(3000)]
    sizes += [(rng.randint(1, 60), rng.randint(1, 3000)) for _ in range(1500)]
    sizes += [(rng.randint(1, 3000), rng.randint(1, 60)) for _ in range(1500)]
    for width, height in sizes:
        try:
            high, wide = rules.smart_resize(height, width)
        except ValueError:
            refused += 1
            with pytest.raises(InputError, match="at most 200 times the shorter"):
                FAMILY.media_of_images(made, [(width, height)])
            continue
        (shape,) = FAMILY.media_of_images(made, [(width, height)])
        assert shape.grid == (1, high // 28, wide // 28), (width, height)
        assert shape.encoder_tokens == high * wide // 196 and shape.encoder_sequences == (high * wide // 196,)
    assert refused


@pytest.mark.parametrize("size", [(640, 480), (20, 900), (1, 1), (2500, 13), (3000, 2000)])
def test_a_picture_gives_the_grid_of_its_size(size):
    found = image_processor("paddleocr_vl", "paddleocr_vl", "PaddleOCRVLImageProcessorPil")
    inputs = found(images=[image(*size)], return_tensors="pt")
    given = FAMILY.media(config(), inputs, {"image": 1})["image"]
    assert given == FAMILY.media_of_images(config(), [size])
    assert len(inputs["pixel_values"]) == given[0].encoder_tokens


def test_the_features_of_a_region_are_at_its_cell_of_the_grid():
    # 24 x 16 pixels in patches of 4: 3 x 2 cells of 8 x 8 pixels.
    size = {"shortest_edge": 1, "longest_edge": 10_000}
    rules = image_processor("paddleocr_vl", "paddleocr_vl", "PaddleOCRVLImageProcessorPil", patch_size=4, size=size)
    model, plain = tiny.tiny_model("paddleocr_vl"), image(24, 16)

    def features(picture):
        with torch.no_grad():
            return flat(model.model.get_image_features(**rules(images=[picture], return_tensors="pt")))

    (shape,) = FAMILY.media(model.config, rules(images=[plain], return_tensors="pt"), {"image": 6})["image"]
    before = features(plain)
    for y in range(2):
        for x in range(3):
            after = features(painted(plain, (8 * x, 8 * y, 8 * x + 8, 8 * y + 8)))
            assert places(shape, before, after) == [(0, y, x)]


def test_a_picture_without_a_side_and_a_video_are_refused():
    with pytest.raises(InputError, match="both sides are at least 1"):
        FAMILY.media_of_images(config(), [(0, 480)])
    with pytest.raises(UnsupportedCombination, match="PaddleOCR-VL takes no video"):
        FAMILY.media_of_video(config(), (640, 480), 4)
    with pytest.raises(InputError, match="image placeholders but image_grid_thw is missing"):
        FAMILY.media(config(), {}, {"image": 4})
