"""Cosmos3 Edge: grids of its resize rule, features at their places, an MLP without a gate."""

from __future__ import annotations

import random

import pytest
import torch

from foveate import families
from foveate.errors import InputError
from tests import tiny
from tests.families.features import flat, painted, places
from tests.families.processors import image, image_processor

pytestmark = pytest.mark.skipif("cosmos3_edge" not in tiny.ALL_FAMILIES, reason="this transformers has no Cosmos3 Edge")
FAMILY = families.get("cosmos3_edge")


def config():
    from transformers import Cosmos3EdgeConfig

    return Cosmos3EdgeConfig(text_config={}, vision_config={})


def test_many_sizes_give_the_grids_of_the_resize_rule():
    rules = pytest.importorskip("transformers.models.cosmos3_edge.image_processing_pil_cosmos3_edge")
    made, rng = config(), random.Random(0)
    for _ in range(3000):
        width, height, frames = rng.randint(1, 5000), rng.randint(1, 5000), rng.randint(1, 300)
        if max(width, height) > 150 * min(width, height):
            continue
        high, wide = rules.smart_resize(1, height, width, 1, 32, 256 * 256, 4096 * 4096)
        (shape,) = FAMILY.media_of_images(made, [(width, height)])
        assert shape.grid == (1, high // 32, wide // 32), (width, height)
        high, wide = rules.smart_resize(frames, height, width, 1, 32, 64 * 64, 24 * 1024 * 1024)
        shape = FAMILY.media_of_video(made, (width, height), frames)
        assert shape.grid == (frames, high // 32, wide // 32), (width, height, frames)
        assert shape.encoder_sequences == (high * wide // 256,) * frames
    with pytest.raises(InputError, match="a video has at least 1"):
        FAMILY.media_of_video(made, (640, 480), 0)


@pytest.mark.parametrize("size", [(640, 480), (60, 900), (1200, 1000)])
def test_a_picture_gives_the_grid_of_its_size(size):
    found = image_processor("cosmos3_edge", "cosmos3_edge", "Cosmos3EdgeImageProcessorPil")
    inputs = found(images=[image(*size)], return_tensors="pt")
    given = FAMILY.media(config(), inputs, {"image": 1, "video": 0})["image"]
    assert given == FAMILY.media_of_images(config(), [size])
    assert len(inputs["pixel_values"]) == given[0].encoder_tokens


def test_the_features_of_a_region_are_at_its_cell_of_the_grid():
    size = {"shortest_edge": 1, "longest_edge": 10_000}
    rules = image_processor("cosmos3_edge", "cosmos3_edge", "Cosmos3EdgeImageProcessorPil", patch_size=4, size=size)
    model, plain = tiny.tiny_model("cosmos3_edge"), image(24, 16)

    def features(picture):
        with torch.no_grad():
            return flat(model.model.get_image_features(**rules(images=[picture], return_tensors="pt")))

    (shape,) = FAMILY.media(model.config, rules(images=[plain], return_tensors="pt"), {"image": 6, "video": 0})["image"]
    before = features(plain)
    for y in range(2):
        for x in range(3):
            after = features(painted(plain, (8 * x, 8 * y, 8 * x + 8, 8 * y + 8)))
            assert places(shape, before, after) == [(0, y, x)]


def test_its_mlps_have_no_gate():
    assert not FAMILY.model_shape(config()).decoder.gated_mlp
