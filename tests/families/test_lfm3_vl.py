"""LFM3-VL: grids of its processors' resize rules, features at their places, and layers of three kinds."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from foveate import families
from foveate.errors import PlanError
from tests import tiny
from tests.families.features import flat, painted, places
from tests.families.processors import image, image_processor

pytestmark = pytest.mark.skipif("lfm3_vl" not in tiny.ALL_FAMILIES, reason="this transformers has no LFM3-VL")
FAMILY = families.get("lfm3_vl")


def config() -> Any:
    from transformers import Lfm3VlConfig

    return Lfm3VlConfig(text_config={}, vision_config={})


@pytest.mark.parametrize("size", [(640, 480), (60, 900), (1200, 1000), (4000, 3000), (10, 30)])
def test_a_picture_gives_the_grid_of_its_size(size):
    found = image_processor("qwen2_vl", "qwen2_vl", "Qwen2VLImageProcessorPil", patch_size=16)
    inputs = found(images=[image(*size)], return_tensors="pt")
    given = FAMILY.media(config(), inputs, {"image": 1, "video": 0})["image"]
    assert given == FAMILY.media_of_images(config(), [size])
    assert len(inputs["pixel_values"]) == given[0].encoder_tokens


def test_videos_of_many_sizes_give_the_grids_of_the_resize_rule():
    found = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    bounds = found.Qwen3VLVideoProcessor.size
    made, rng = config(), random.Random(0)
    for _ in range(300):
        width, height, frames = rng.randint(100, 4000), rng.randint(100, 3000), rng.randint(2, 300)
        high, wide = found.smart_resize(frames, height, width, 2, 32, bounds["shortest_edge"], bounds["longest_edge"])
        shape = FAMILY.media_of_video(made, (width, height), frames)
        assert shape.grid == ((frames + 1) // 2, high // 32, wide // 32), (width, height, frames)
        assert shape.encoder_sequences == (high * wide // 256,) * shape.grid[0]


def test_the_features_of_a_region_are_at_its_cell_of_the_grid():
    size = {"shortest_edge": 1, "longest_edge": 10_000}
    rules = image_processor("qwen2_vl", "qwen2_vl", "Qwen2VLImageProcessorPil", patch_size=4, size=size)
    model, plain = tiny.tiny_model("lfm3_vl"), image(24, 16)

    def features(picture):
        with torch.no_grad():
            return flat(model.model.get_image_features(**rules(images=[picture], return_tensors="pt")))

    (shape,) = FAMILY.media(model.config, rules(images=[plain], return_tensors="pt"), {"image": 6, "video": 0})["image"]
    before = features(plain)
    for y in range(2):
        for x in range(3):
            after = features(painted(plain, (8 * x, 8 * y, 8 * x + 8, 8 * y + 8)))
            assert places(shape, before, after) == [(0, y, x)]


def test_layers_are_of_three_kinds():
    made = config()
    kinds = made.get_text_config().layer_types
    decoder, encoder = FAMILY.model_shape(made).decoder, FAMILY.model_shape(made).encoder
    for layer, kind in enumerate(kinds):
        assert (decoder.layer(layer).state is not None) == (kind == "conv")
        assert decoder.window(layer) == (256 if kind == "sliding_attention" else None)
    assert FAMILY.full_layers(made) == (2, 6, 10, 14, 18, 22)
    assert encoder.convolved_layers == (0, 1, 3, 5, 7, 9, 11, 13)
    made.get_text_config().use_attention_gate = False
    assert FAMILY.model_shape(made).decoder.layer(2).other_weights == 0 < decoder.layer(2).other_weights


def test_attention_within_a_window_ranks_no_picture():
    import foveate

    model = tiny.tiny_model("lfm3_vl")
    model.config.get_text_config().layer_types[1] = "sliding_attention"  # then the first layer that sees all is the fifth
    with pytest.raises(PlanError, match="the smallest valid layer is 5"):
        foveate.attach(model, "fastv(layer=3, keep=0.5)")
