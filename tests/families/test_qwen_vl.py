"""Qwen2-VL and its successors: grids of any size, equal to what their own image processor and encoder compute."""

from __future__ import annotations

import random

import pytest
import torch

from foveate import families
from foveate.cost.presets import load_preset
from foveate.errors import InputError
from foveate.families import family_for
from tests import tiny
from tests.families.processors import image, image_processor

# Odd sizes, both bounds of the area, thin images, and one that rounds to no patch row at all before it is enlarged.
SIZES = [
    (640, 480), (1024, 768), (28, 28), (27, 29), (1, 1), (5, 900), (2500, 13), (13, 2500), (199, 1), (42, 70),
    (4000, 3000), (3000, 4001), (1, 200), (98, 14), (1003, 1000), (56, 56), (55, 55), (7777, 40),
]  # fmt: skip


# Sides of images are multiples of `unit`; the bounds are those of the published checkpoints, wider than the class's own.
RELATIVES = {
    "qwen2-vl-7b": (28, 3_136, 12_845_056),
    "qwen2.5-vl-7b": (28, 3_136, 12_845_056),
    "qwen3-vl-8b": (32, 65_536, 16_777_216),
    "qwen3-vl-30b-a3b": (32, 65_536, 16_777_216),
}
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "cosmos3_omni", "exaone4_5")
every_relative = pytest.mark.parametrize("preset", RELATIVES)


def config_of(preset: str):
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset(preset))


@pytest.fixture(scope="module")
def config():
    return config_of("qwen2.5-vl-7b")


def processor(patch: int, least: int, most: int):
    return image_processor(
        "qwen2_vl", "qwen2_vl", "Qwen2VLImageProcessorPil", patch_size=patch, min_pixels=least, max_pixels=most
    )


@pytest.mark.full
@pytest.mark.pairs
@every_relative
@pytest.mark.parametrize("size", SIZES)
def test_a_size_gives_the_grid_of_the_processor(preset, size):
    config, (unit, *bounds) = config_of(preset), RELATIVES[preset]
    (t, h, w) = processor(unit // 2, *bounds)(images=[image(*size)], return_tensors="pt")["image_grid_thw"][0].tolist()
    (shape,) = family_for(config).media_of_images(config, [size])
    assert shape.grid == (t, h // 2, w // 2)
    assert shape.encoder_tokens == t * h * w


@every_relative
def test_many_sizes_give_the_grids_of_the_resize_rule(preset):
    found = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    config, (unit, *bounds) = config_of(preset), RELATIVES[preset]
    rng = random.Random(0)
    sizes = [(rng.randint(1, 5000), rng.randint(1, 5000)) for _ in range(3000)]
    sizes += [(rng.randint(1, 60), rng.randint(1, 3000)) for _ in range(3000)]
    sizes = [(width, height) for width, height in sizes if max(width, height) <= 200 * min(width, height)]
    for (width, height), shape in zip(sizes, family_for(config).media_of_images(config, sizes), strict=True):
        high, wide = found.smart_resize(height, width, unit, *bounds)
        assert shape.grid == (1, high // unit, wide // unit), (width, height)


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.runs(name)) for name in PACKED])
def test_the_features_of_a_region_are_at_its_cell_of_the_grid(family):
    # 24 x 16 pixels in patches of 4: 3 x 2 cells of 8 x 8 pixels.
    rules, model = processor(4, 1, 10_000), tiny.tiny_model(family)
    plain = image(24, 16)
    (shape,) = families.get(family).media(model.config, rules(images=[plain], return_tensors="pt"), {"image": 6, "video": 0})[
        "image"
    ]
    assert shape.grid == (1, 2, 3)
    for cell in range(6):
        other = plain.copy()
        other.paste((250, 10, 200), (cell % 3 * 8, cell // 3 * 8, cell % 3 * 8 + 8, cell // 3 * 8 + 8))
        with torch.no_grad():
            before, after = (
                torch.cat(model.model.get_image_features(**rules(images=[one], return_tensors="pt")).pooler_output)
                for one in (plain, other)
            )
        assert int((after - before).norm(dim=1).argmax()) == cell


@every_relative
@pytest.mark.parametrize("size", [(201, 1), (1, 201), (0, 5), (4100, 20)])
def test_an_image_that_the_processor_refuses_is_refused(preset, size):
    config = config_of(preset)
    with pytest.raises(InputError, match=r"pixels: (the longer side is at most 200 times the shorter|both sides)"):
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


@every_relative
def test_images_and_videos_of_one_call(preset):
    config = config_of(preset)
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


@every_relative
def test_placeholder_ids(preset):
    config = config_of(preset)
    assert family_for(config).placeholder_ids(config) == {"image": 151655, "video": 151656}
