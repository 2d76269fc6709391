"""LLaVA-OneVision: tokens per image size under the bound, several images in a prompt, video, and where features lie."""

from __future__ import annotations

import random

import pytest
import torch

import foveate
from foveate import families
from foveate.cost.presets import load_preset
from foveate.errors import InputError, UnsupportedModel
from foveate.families import family_for
from tests import tiny
from tests.families.features import check_frames, flat, on_grid, painted, places
from tests.families.processors import image, image_processor, tokenizer
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, real

# Within the bound of 9 tiles and beyond it, in both directions; strips; one pixel.
SIZES = [(640, 480), (384, 384), (1024, 768), (2304, 2304), (2304, 1000), (900, 2300), (20, 900), (901, 19), (1, 1), (3000, 2)]
NAME = "LlavaOnevisionImageProcessorPil"


def config_of(**changes):
    from transformers import AutoConfig

    return AutoConfig.for_model(**(load_preset("llava-onevision-7b") | changes))


def processor():
    from transformers import LlavaOnevisionProcessor
    from transformers.processing_utils import ProcessorMixin

    rules = object.__new__(LlavaOnevisionProcessor)  # its constructor asks for a video processor, which needs torchvision
    words = tokenizer(image_token="<image>", video_token="<video>")
    assert isinstance(rules, ProcessorMixin)
    rules.image_processor = image_processor("llava_onevision", "llava_onevision", NAME)
    rules.tokenizer, rules.num_image_tokens, rules.vision_feature_select_strategy = words, 729, "full"
    rules.image_token, rules.video_token, rules.vision_aspect_ratio = "<image>", "<video>", "anyres_max_9"
    return rules


def columns_of(rules, inputs, number: int) -> int:
    """Columns that the processor makes for an image of the call."""
    if not hasattr(rules, "replace_image_token"):
        pytest.skip("this transformers expands images in another place")
    return rules.replace_image_token(inputs, number).count("<image>")


@pytest.mark.full
@pytest.mark.parametrize("size", SIZES)
def test_an_image_fills_the_columns_that_its_processor_makes(size):
    config, rules = config_of(), processor()
    inputs = rules.image_processor(images=[image(*size)], return_tensors="pt")
    (shape,) = family_for(config).media_of_images(config, [size])
    assert len(shape.encoder_sequences) == inputs["pixel_values"].shape[1]
    assert family_for(config).media(config, inputs, {"image": shape.tokens, "video": 0})["image"] == [shape]
    assert shape.tokens == columns_of(rules, inputs, 0)


def test_many_sizes_fill_the_columns_of_the_processor_s_rule():
    config, rules, rng = config_of(), processor(), random.Random(0)
    sizes = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(1500)]
    sizes += [(rng.randint(1, 40), rng.randint(1, 3000)) for _ in range(500)]
    family = family_for(config)
    for width, height in sizes:
        (shape,) = family.media_of_images(config, [(width, height)])
        assert shape.tokens == rules._get_number_of_features(height, width, 384, 384), (width, height)


def test_several_images_of_a_prompt_have_no_tiles():
    config, rules = config_of(), processor()
    pictures = [[image(640, 480)], [image(640, 480), image(100, 900)]]
    inputs = rules.image_processor(images=pictures, return_tensors="pt")
    assert inputs["batch_num_images"].tolist() == [1, 2]
    family = family_for(config)
    tiled, *untiled = family.media(config, inputs, {"image": 1, "video": 0})["image"]
    assert [tiled] == family.media_of_images(config, [(640, 480)])
    assert untiled == family.media_of_images(config, [(640, 480), (100, 900)])
    assert all((shape.tokens, shape.separators, shape.crops) == (730, (729,), ()) for shape in untiled)
    assert [shape.tokens for shape in (tiled, *untiled)] == [columns_of(rules, inputs, number) for number in range(3)]


def test_an_estimate_knows_the_tokens_of_each_size():
    side = int(162 // (162 * 162 / (9 * 729)) ** 0.5)  # 6 x 6 tiles shrink to what 3 x 3 tiles have
    assert side == 81
    for sizes, tokens in (
        ([(384, 384)], 729 + 27 * 27 + 27),
        ([(2304, 2304)], 729 + side * side + side),
        ([(640, 480), (384, 384)], 2 * 730),
    ):
        cost = foveate.estimate("llava-onevision-7b", "fastv(layer=2, keep=0.5)", images=sizes)
        assert cost.visual_tokens_per_layer[0] == (tokens,) * 28


def rules_of(config):
    return image_processor(
        "llava_onevision",
        "llava_onevision",
        NAME,
        size={"height": 16, "width": 16},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )


@pytest.mark.full
@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 32), (32, 32)])
def test_the_features_of_a_region_are_at_its_cell_of_overview_and_tiles(size):
    model, family = tiny.tiny_model("llava_onevision"), families.get("llava_onevision")
    rules, plain = rules_of(model.config), image(*size)
    (shape,) = family.media_of_images(model.config, [size])
    _, (_, high, wide) = shape.grids
    assert (high, wide) == ((6, 6) if size == (32, 32) else (size[1] // 4, size[0] // 4))

    def features(picture):
        with torch.no_grad():
            return flat(model.model.get_image_features(**rules(images=[picture], return_tensors="pt")))

    before = features(plain)
    newline = model.model.image_newline.detach()
    assert torch.equal(before[~on_grid(shape)], newline.expand(high, -1))
    for y in range(high):
        for x in range(wide):
            left, right = (round(size[0] * edge / wide) for edge in (x, x + 1))
            top, bottom = (round(size[1] * edge / high) for edge in (y, y + 1))
            _, (t, row, column) = places(shape, before, features(painted(plain, (left, top, right, bottom))))
            # Where the tiles were shrunk, a cell shows parts of its neighbours too.
            slack = 1 if size == (32, 32) else 0
            assert t == 0 and abs(row - y) <= slack and abs(column - x) <= slack


def test_untiled_images_end_with_a_newline_token():
    model, family = tiny.tiny_model("llava_onevision"), families.get("llava_onevision")
    inputs = rules_of(model.config)(images=[[image(32, 16), image(16, 16)]], return_tensors="pt")
    shapes = family.media(model.config, inputs, {"image": 34, "video": 0})["image"]
    with torch.no_grad():
        packed = model.model.get_image_features(**inputs).pooler_output
    for features, shape in zip(packed, shapes, strict=True):
        assert len(features) == shape.tokens == 17
        assert torch.equal(features[~on_grid(shape)], model.model.image_newline.detach()[None])


def test_a_batch_of_tiled_and_untiled_images_equals_the_dense_reference():
    model, family = tiny.tiny_model("llava_onevision"), families.get("llava_onevision")
    pictures = [[painted(image(32, 16), (0, 0, 16, 16))], [image(32, 16), painted(image(16, 16), (4, 4, 12, 12))]]
    inputs = dict(rules_of(model.config)(images=pictures, return_tensors="pt"))
    shapes = family.media(model.config, inputs, {"image": 1, "video": 0})["image"]
    rows = [[3, 4] + [90] * shapes[0].tokens + [5, 6], [7] + [90] * shapes[1].tokens + [8, 9] + [90] * shapes[2].tokens + [10]]
    width = max(map(len, rows))
    inputs["input_ids"] = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    with torch.no_grad(), foveate.attach(model, "fastv(layer=2, keep=0.4)") as attachment:
        pruned = model(**inputs).logits
        (alive,) = alive_columns(attachment.trace, inputs)
        assert [entry.medium.shape for entry in attachment.trace] == shapes
    with torch.no_grad(), dense_reference(model, {2: alive}):
        reference = model(**inputs).logits
    plain = model(**inputs).logits.detach()
    assert float((pruned - reference)[real(inputs) & alive].abs().max()) < 2e-4
    assert float((pruned - plain)[:, -1].abs().max()) > 0.02


@pytest.mark.parametrize("frames", [1, 8])
def test_a_video_fills_the_columns_that_its_processor_makes(frames):
    config, rules, pixels = config_of(), processor(), torch.zeros(1, frames, 3, 384, 384)
    family = family_for(config)
    shape = family.media_of_video(config, (640, 480), frames)
    assert (shape.kind, shape.grid, shape.separators) == ("video", (frames, 14, 14), (frames * 196,))
    assert family.media(config, {"pixel_values_videos": pixels}, {"image": 0, "video": 1})["video"] == [shape]
    if not hasattr(rules, "replace_video_token"):
        pytest.skip("this transformers expands videos in another place")
    assert shape.tokens == rules.replace_video_token({"pixel_values_videos": pixels}, 0).count("<video>")


@pytest.mark.since((5, 23), "earlier, transformers adds the newline token behind get_video_features")
def test_the_features_of_a_frame_s_region_are_at_its_cell():
    model, family = tiny.tiny_model("llava_onevision"), families.get("llava_onevision")
    shape = family.media_of_video(model.config, (16, 16), 3)
    check_frames(shape, 16, lambda video: flat(model.model.get_video_features(video)))
    with torch.no_grad():
        features = flat(model.model.get_video_features(torch.randn(1, 3, 3, 16, 16)))
    assert torch.equal(features[~on_grid(shape)], model.model.image_newline.detach()[None])


def test_what_does_not_fit_is_refused():
    config = config_of()
    inputs = {"image_sizes": torch.tensor([[10, 10], [20, 20]]), "batch_num_images": torch.tensor([3])}
    with pytest.raises(InputError, match="batch_num_images counts 3 images, but image_sizes has 2 rows"):
        family_for(config).media(config, inputs, {"image": 10, "video": 0})
    with pytest.raises(UnsupportedModel, match="cuts the first token, which for a SigLIP encoder is a patch"):
        family_for(config_of(vision_feature_select_strategy="default"))
