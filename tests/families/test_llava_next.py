"""LLaVA-NeXT and its video relative: tokens per image size, and where overview, tiles and newline tokens lie."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate import families
from foveate.cost.presets import load_preset
from foveate.errors import InputError, UnsupportedModel
from foveate.families import family_for
from foveate.families.llava_next import best_resolution
from tests import tiny
from tests.families.features import check_frames, flat, on_grid, painted, places
from tests.families.processors import image, image_processor, tokenizer

# Odd sides, one pixel, and strips so thin that the high-resolution grid has no row, or rows without any column.
SIZES = [(640, 480), (336, 336), (1024, 768), (20, 900), (1, 1), (901, 19), (1000, 1), (1, 1000), (673, 671), (2000, 1500)]


def config_of(**changes):
    from transformers import AutoConfig

    return AutoConfig.for_model(**(load_preset("llava-1.6-mistral-7b") | changes))


def processor(**options):
    from transformers import LlavaNextProcessor

    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}} | options
    pixels = image_processor("llava_next", "llava_next", "LlavaNextImageProcessorPil", **size)
    words = tokenizer(image_token="<image>")
    return LlavaNextProcessor(
        pixels, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


@pytest.mark.parametrize("size", SIZES)
def test_an_image_fills_the_columns_that_its_processor_makes(size):
    config, rules = config_of(), processor()
    inputs = rules(images=[image(*size)], text="text <image> text", return_tensors="pt")
    columns = int((inputs["input_ids"] == rules.image_token_id).sum())
    (shape,) = family_for(config).media_of_images(config, [size])
    assert shape.tokens == columns
    assert len(shape.encoder_sequences) == inputs["pixel_values"].shape[1]
    assert family_for(config).media(config, inputs, {"image": columns}) == {"image": [shape]}


@pytest.mark.full
def test_many_sizes_fill_the_columns_of_the_processor_s_rule():
    config, rules, rng = config_of(), processor(), random.Random(0)
    sizes = [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(1500)]
    sizes += [(rng.randint(1, 40), rng.randint(1, 3000)) for _ in range(500)]
    for (width, height), shape in zip(sizes, family_for(config).media_of_images(config, sizes), strict=True):
        # Its rule counts the class token that the default strategy cuts away.
        assert shape.tokens == rules._get_number_of_features(height, width, 336, 336) - 1, (width, height)


def test_images_of_several_sizes_in_one_call():
    config, rules = config_of(), processor()
    pictures = [image(*size) for size in SIZES[:3]]
    inputs = rules(images=pictures, text="text <image> text <image> <image>", return_tensors="pt")
    columns = {"image": int((inputs["input_ids"] == rules.image_token_id).sum())}
    shapes = family_for(config).media(config, inputs, columns)["image"]
    assert shapes == family_for(config).media_of_images(config, SIZES[:3])
    assert sum(shape.tokens for shape in shapes) == columns["image"]


def test_an_estimate_knows_the_tokens_of_each_size():
    for size, tokens in (((640, 480), 576 + 36 * 48 + 36), ((336, 336), 576 + 24 * 24 + 24), ((1008, 336), 576 + 24 * 72 + 24)):
        (shape,) = family_for(config_of()).media_of_images(config_of(), [size])
        assert shape.tokens == tokens
        cost = foveate.estimate("llava-1.6-mistral-7b", "fastv(layer=2, keep=0.5)", images=[size])
        newlines = len(shape.separators)
        kept = (tokens - newlines + 1) // 2 + newlines
        assert cost.visual_tokens_per_layer == ((tokens,) * 32, (tokens,) * 2 + (kept,) * 30)


@pytest.mark.full
@pytest.mark.parametrize("size", [(32, 16), (16, 32), (32, 24), (24, 32)])
@pytest.mark.parametrize("name", ["llava_next", "llava_next_video"])
def test_the_features_of_a_region_are_at_its_cell_of_overview_and_tiles(name, size):
    model, family = tiny.tiny_model(name), families.get(name)
    config = model.config
    rules = image_processor(
        "llava_next",
        "llava_next",
        "LlavaNextImageProcessorPil",
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    plain = image(*size)
    (shape,) = family.media_of_images(config, [size])
    (_, base, _), (_, high, wide) = shape.grids

    def features(picture):
        with torch.no_grad():
            return flat(model.model.get_image_features(**rules(images=[picture], return_tensors="pt")))

    before = features(plain)
    newline = model.model.image_newline.detach()
    assert torch.equal(before[~on_grid(shape)], newline.expand(high, -1))
    for y in range(high):
        for x in range(wide):
            left, right = (size[0] * edge // wide for edge in (x, x + 1))
            top, bottom = (size[1] * edge // high for edge in (y, y + 1))
            overview, tiles = places(shape, before, features(painted(plain, (left, top, right, bottom))))
            assert tiles == (0, y, x)
            if high % base == wide % base == 0:
                assert overview == (0, y * base // high, x * base // wide)


def test_a_strip_without_rows_has_an_overview_only():
    config = config_of()
    row, column = family_for(config).media_of_images(config, [(1000, 1), (1, 1000)])
    assert (row.crops, row.separators, row.tokens) == ((), (), 576)
    # Without any column each row is its newline token.
    assert (column.crops, column.separators, column.tokens) == ((), tuple(range(576, 576 + 72)), 576 + 72)


def test_what_does_not_fit_is_refused():
    config = config_of()
    family = family_for(config)
    with pytest.raises(InputError, match="image_sizes is missing: pass everything the processor returned"):
        family.media(config, {}, {"image": 10})
    sizes = {"image_sizes": torch.tensor([[10, 10], [20, 20]]), "pixel_values": torch.zeros(1, 5, 3, 1, 1)}
    with pytest.raises(InputError, match="image_sizes has 2 rows, but pixel values for 1 images are given"):
        family.media(config, sizes, {"image": 10})
    with pytest.raises(InputError, match="sides are at least 1"):
        family.media_of_images(config, [(0, 5)])
    assert family.media(config, {}, {"image": 0}) == {"image": []}
    with pytest.raises(UnsupportedModel, match="keeps the class token of every tile"):
        family_for(config_of(vision_feature_select_strategy="full"))
    with pytest.raises(UnsupportedModel, match="LLaVA with a 'pixtral' encoder"):
        family_for(config_of(vision_config={"model_type": "pixtral"}))


def video_config():
    return config_of(model_type="llava_next_video", video_token_index=32001)


@pytest.mark.parametrize("frames", [1, 8])
def test_a_video_fills_the_columns_that_its_processor_makes(frames):
    from transformers import LlavaNextVideoProcessor

    if not hasattr(LlavaNextVideoProcessor, "replace_video_token"):
        pytest.skip("this transformers expands videos in another place")
    config, pixels = video_config(), torch.zeros(1, frames, 3, 336, 336)
    rules = SimpleNamespace(patch_size=14, video_token="v")
    text = LlavaNextVideoProcessor.replace_video_token(rules, {"pixel_values_videos": pixels}, 0)
    family = family_for(config)
    shape = family.media_of_video(config, (640, 480), frames)
    assert (shape.kind, shape.grid, shape.tokens) == ("video", (frames, 12, 12), len(text))
    media = family.media(config, {"pixel_values_videos": pixels}, {"image": 0, "video": len(text)})
    assert media == {"image": [], "video": [shape]}


def test_the_features_of_a_frame_s_region_are_at_its_cell():
    model, family = tiny.tiny_model("llava_next_video"), families.get("llava_next_video")
    shape = family.media_of_video(model.config, (16, 16), 3)
    check_frames(shape, 16, lambda video: flat(model.model.get_video_features(video)))


def test_videos_without_frames_are_refused():
    config = video_config()
    with pytest.raises(InputError, match="pixel_values_videos is missing, which says how many frames there are"):
        family_for(config).media(config, {}, {"image": 0, "video": 144})
    with pytest.raises(InputError, match="a video has at least 1"):
        family_for(config).media_of_video(config, (64, 64), 0)
    with pytest.raises(foveate.errors.UnsupportedCombination, match="takes no video"):
        family_for(config_of()).media_of_video(config_of(), (64, 64), 4)


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.lists(st.tuples(*[st.sampled_from([16, 32, 48, 336, 384, 672, 1008])] * 2), min_size=1, max_size=10),
)
def test_the_best_resolution_is_the_one_that_transformers_takes(size, resolutions):
    from transformers.image_processing_utils import select_best_resolution

    assert best_resolution(size, resolutions) == select_best_resolution(size, resolutions)
