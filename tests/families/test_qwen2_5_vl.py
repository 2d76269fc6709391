"""Qwen2.5-VL: grids of any size, equal to what its own image processor and encoder compute."""

from __future__ import annotations

import random

import pytest
import torch

from foveate.cost.presets import load_preset
from foveate.errors import InputError
from foveate.families import family_for
from tests.families.processors import image, image_processor

# Odd sizes, both bounds of the area, thin images, and one that rounds to no patch row at all before it is enlarged.
SIZES = [
    (640, 480), (1024, 768), (28, 28), (27, 29), (1, 1), (5, 900), (2500, 13), (13, 2500), (199, 1), (42, 70),
    (4000, 3000), (3000, 4001), (1, 200), (98, 14), (1003, 1000), (56, 56), (55, 55), (7777, 40),
]  # fmt: skip


@pytest.fixture(scope="module")
def config():
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset("qwen2.5-vl-7b"))


def processor():
    # The bounds of the published checkpoints, which are wider than the class's own defaults.
    bounds = {"min_pixels": 3_136, "max_pixels": 12_845_056}
    return image_processor("qwen2_vl", "qwen2_vl", "Qwen2VLImageProcessorPil", **bounds)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_gives_the_grid_of_the_processor(config, size):
    (t, h, w) = processor()(images=[image(*size)], return_tensors="pt")["image_grid_thw"][0].tolist()
    (shape,) = family_for(config).media_of_images(config, [size])
    assert shape.grid == (t, h // 2, w // 2)
    assert shape.encoder_tokens == t * h * w


def test_many_sizes_give_the_grids_of_the_resize_rule(config):
    found = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    rng = random.Random(0)
    sizes = [(rng.randint(1, 5000), rng.randint(1, 5000)) for _ in range(3000)]
    sizes += [(rng.randint(1, 60), rng.randint(1, 3000)) for _ in range(3000)]
    sizes = [(width, height) for width, height in sizes if max(width, height) <= 200 * min(width, height)]
    bounds = processor().size
    for (width, height), shape in zip(sizes, family_for(config).media_of_images(config, sizes), strict=True):
        high, wide = found.smart_resize(height, width, 28, bounds["shortest_edge"], bounds["longest_edge"])
        assert shape.grid == (1, high // 28, wide // 28), (width, height)


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (0, 5), (4100, 20)])
def test_an_image_that_the_processor_refuses_is_refused(config, size):
    with pytest.raises(InputError, match=r"image of \d+ x \d+ pixels: the longer side is at most 200 times the shorter"):
        family_for(config).media_of_images(config, [size])


@pytest.mark.parametrize("patches", [(1, 16, 24), (1, 8, 8), (1, 34, 46), (1, 2, 2), (3, 18, 10), (2, 2, 40)])
def test_the_windows_are_those_of_the_encoder(config, patches):
    utilities = pytest.importorskip("transformers.vision_utils")
    vision = config.vision_config
    _, bounds = utilities.get_vision_window_index(
        torch.tensor([patches]), vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    lengths = torch.as_tensor(bounds).unique_consecutive().diff()
    (shape,) = family_for(config).media(config, {"image_grid_thw": torch.tensor([patches])}, {"image": 1, "video": 0})["image"]
    assert list(shape.encoder_windows) == lengths.tolist()
    assert sum(shape.encoder_windows) == shape.encoder_tokens == patches[0] * patches[1] * patches[2]
    assert shape.encoder_sequences == (patches[1] * patches[2],) * patches[0]


def test_images_and_videos_of_one_call(config):
    inputs = {"image_grid_thw": torch.tensor([[1, 8, 12], [1, 4, 4]]), "video_grid_thw": torch.tensor([[4, 6, 10]])}
    media = family_for(config).media(config, inputs, {"image": 28, "video": 60})
    assert [shape.grid for shape in media["image"]] == [(1, 4, 6), (1, 2, 2)]
    assert [(shape.kind, shape.grid, shape.tokens) for shape in media["video"]] == [("video", (4, 3, 5), 60)]


def test_a_text_only_call_has_no_media(config):
    assert family_for(config).media(config, {}, {"image": 0, "video": 0}) == {"image": [], "video": []}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_placeholders_without_their_grid_are_refused(config, kind):
    with pytest.raises(InputError, match=f"the prompt has {kind} placeholders but {kind}_grid_thw is missing"):
        family_for(config).media(config, {}, {"image": 0, "video": 0} | {kind: 4})


def test_placeholder_ids(config):
    assert family_for(config).placeholder_ids(config) == {"image": 151655, "video": 151656}
