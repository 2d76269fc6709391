"""VideoLLaMA 3: images in full and frames merged 2 x 2, and videos that the processor thinned out already."""

from __future__ import annotations

import random

import pytest
import torch

import foveate
from foveate import families
from foveate.errors import InputError, UnsupportedCombination
from tests import tiny
from tests.families.features import flat, places
from tests.families.processors import image, image_processor

pytestmark = pytest.mark.skipif("video_llama_3" not in tiny.ALL_FAMILIES, reason="this transformers has no VideoLLaMA 3")
FAMILY = families.get("video_llama_3")


def config():
    from transformers import VideoLlama3Config

    return VideoLlama3Config(text_config={"model_type": "qwen2"}, vision_config={"patch_size": 14})


def test_many_sizes_give_the_grids_of_the_resize_rule():
    rules = pytest.importorskip("transformers.models.video_llama_3.image_processing_pil_video_llama_3")
    made, rng = config(), random.Random(0)
    for _ in range(2000):
        width, height, frames = rng.randint(15, 4000), rng.randint(15, 4000), rng.randint(1, 180)
        if max(width, height) > 200 * min(width, height):
            continue
        high, wide = rules.smart_resize(height, width, 14, 56 * 56, 28 * 28 * 1280)
        (shape,) = FAMILY.media_of_images(made, [(width, height)])
        assert shape.grid == (1, high // 14, wide // 14)
        high, wide = rules.smart_resize(height, width, 28, 128 * 28 * 28, 28 * 28 * 768 // frames)
        shape = FAMILY.media_of_video(made, (width, height), frames)
        assert shape.grid == (frames, high // 28, wide // 28)
        assert shape.encoder_sequences == (high * wide // 196,) * frames
    with pytest.raises(InputError, match="a video has at least 1"):
        FAMILY.media_of_video(made, (640, 480), 0)


@pytest.mark.parametrize("size", [(640, 480), (60, 900), (1200, 1000)])
def test_a_picture_gives_the_grid_of_its_size(size):
    found = image_processor("video_llama_3", "video_llama_3", "VideoLlama3ImageProcessorPil")
    inputs = found(images=[image(*size)], return_tensors="pt")
    given = FAMILY.media(config(), inputs, {"image": 1, "video": 0})["image"]
    assert given == FAMILY.media_of_images(config(), [size])
    assert len(inputs["pixel_values"]) == given[0].encoder_tokens


def test_the_features_of_a_region_of_a_frame_are_at_its_token():
    model, medium = tiny.tiny_model("video_llama_3"), tiny.Maker("video_llama_3").picture(0, "video")
    (shape,) = FAMILY.media(model.config, medium.inputs, {"image": 0, "video": 16})["video"]
    names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    given = {name: medium.inputs[name] for name in names}

    def features(pixels):
        with torch.no_grad():
            return flat(model.model.get_video_features(**given | {"pixel_values_videos": pixels}))

    before = features(given["pixel_values_videos"])
    for token in range(16):  # four patches in a row of the input make one token
        pixels = given["pixel_values_videos"].clone()
        pixels[4 * token : 4 * token + 4] += 4
        after = features(pixels)
        assert places(shape, before, after) == [(token // 8, token % 8 // 4, token % 4)]


def test_a_video_whose_tokens_the_processor_left_out_is_refused():
    model, maker = tiny.tiny_model("video_llama_3"), tiny.Maker("video_llama_3")
    medium = maker.picture(0, "video")
    inputs = maker.inputs([tiny.Row([maker.text(4), medium, maker.text(5)])])
    kept = torch.ones(16, dtype=torch.bool)
    kept[9:12] = False
    ids = inputs["input_ids"]
    gone = (ids[0] == 91).nonzero().flatten()[9:12].tolist()
    rest = [column for column in range(ids.shape[1]) if column not in gone]
    fewer = inputs | {"input_ids": ids[:, rest], "attention_mask": inputs["attention_mask"][:, rest]}
    fewer["video_compression_mask"] = kept
    tiny.generate(model, fewer)  # transformers takes it
    with foveate.attach(model, "random(layer=1, keep=0.5)"):
        tiny.generate(model, inputs)
        with pytest.raises(UnsupportedCombination, match=r"left out 3 of 16 tokens of the videos.*use_token_compression=False"):
            tiny.generate(model, fewer)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_placeholders_without_their_sizes_are_refused(kind):
    columns = {"image": 0, "video": 0} | {kind: 4}
    with pytest.raises(InputError, match=f"{kind} placeholders but {kind}_grid_thw is missing"):
        FAMILY.media(config(), {}, columns)
    with pytest.raises(InputError, match=f"{kind} placeholders but {kind}_merge_sizes is missing"):
        FAMILY.media(config(), {f"{kind}_grid_thw": torch.tensor([[1, 2, 2]])}, columns)
