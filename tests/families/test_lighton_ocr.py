"""LightOnOCR: sides are rounded to patches, and the merger leaves out a last odd one."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foveate import families
from foveate.errors import InputError
from tests import tiny
from tests.families.processors import image, image_processor, tokenizer

pytestmark = pytest.mark.runs("lighton_ocr")


@pytest.fixture
def config() -> Any:
    from transformers import LightOnOcrConfig

    return LightOnOcrConfig()


def test_many_sizes_give_the_grids_of_the_processor(config):
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    rng = random.Random(0)
    sizes = [(rng.randint(28, 5000), rng.randint(28, 5000)) for _ in range(3000)] + [(1540, 1540), (28, 28), (43, 29)]
    sizes = [(width, height) for width, height in sizes if max(width, height) < 50 * min(width, height)]
    found = families.get("lighton_ocr").media_of_images(config, sizes)
    for (width, height), shape in zip(sizes, found, strict=True):
        picture = np.broadcast_to(np.int8(0), (height, width, 3))
        high, wide = module.get_resize_output_image_size(picture, (1540, 1540), (14, 14))
        assert shape.grid == (1, high // 28, wide // 28), (width, height)
        assert shape.encoder_tokens == high * wide // 196


@pytest.mark.parametrize(("size", "words"), [
    ((14, 300), "a side of less than 28 pixels leaves no token"),
    ((0, 300), "both sides are at least 1"),
    ((1, 5000), "it is too thin; crop it"),
])  # fmt: skip
def test_an_image_without_a_token_is_refused(config, size, words):
    with pytest.raises(InputError, match=words):
        families.get("lighton_ocr").media_of_images(config, [size])


def test_images_fill_the_columns_that_the_processor_and_the_model_make(monkeypatch):
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    # The module of the processor takes one function from a module that needs torchvision; the same function stands here too.
    needed = SimpleNamespace(get_resize_output_image_size=module.get_resize_output_image_size)
    monkeypatch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", needed)
    processing = pytest.importorskip("transformers.models.lighton_ocr.processing_lighton_ocr")
    words = tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    rules = image_processor(
        "pixtral", "pixtral", "PixtralImageProcessorPil", size={"longest_edge": 44}, patch_size={"height": 4, "width": 4}
    )
    whole = processing.LightOnOcrProcessor(rules, words, patch_size=4, spatial_merge_size=2)
    model, family = tiny.tiny_model("lighton_ocr"), families.get("lighton_ocr")
    model.config.image_token_id, model.config.vision_config.image_size = whole.image_token_id, 44
    sizes = [(40, 61), (17, 9), (44, 12), (10, 30)]  # with an odd number of patches across, down and both
    inputs = whole(images=[image(*size) for size in sizes], text="text" + " [IMG] text" * 4, return_tensors="pt")
    columns = {"image": int((inputs["input_ids"] == whole.image_token_id).sum())}
    media = family.media(model.config, inputs, columns)["image"]
    assert media == family.media_of_images(model.config, sizes)
    assert sum(shape.tokens for shape in media) == columns["image"]
    assert any(shape.encoder_tokens > 4 * shape.tokens for shape in media)
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    assert [len(one) for one in features] == [shape.tokens for shape in media]
