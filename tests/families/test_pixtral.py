"""Pixtral and Mistral 3: images of any size, in the columns that their processor makes and where their features land."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foveate import families
from foveate.cost.presets import load_preset
from foveate.errors import InputError
from foveate.families import family_for
from tests import tiny
from tests.families.processors import image, image_processor, tokenizer

# The preset, pixels along a side of a visual token, the longer side of an image.
CHECKPOINTS = {"pixtral-12b": (16, 1024), "mistral-small-3.1-24b": (28, 1540)}
both = pytest.mark.parametrize("family", ["pixtral", "mistral3"])


def config_of(preset: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset(preset))


def rules(**options: Any) -> Any:
    return image_processor("pixtral", "pixtral", "PixtralImageProcessorPil", **options)


@pytest.mark.parametrize("preset", CHECKPOINTS)
def test_many_sizes_give_the_grids_of_the_processor(preset):
    config, (unit, longest), rng = config_of(preset), CHECKPOINTS[preset], random.Random(0)
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    sizes = [(rng.randint(1, 5000), rng.randint(1, 5000)) for _ in range(3000)] + [(longest, longest), (longest + 1, 1), (1, 1)]
    sizes = [(width, height) for width, height in sizes if max(width, height) < longest * min(width, height)]
    for (width, height), shape in zip(sizes, family_for(config).media_of_images(config, sizes), strict=True):
        picture = np.broadcast_to(np.int8(0), (height, width, 3))
        high, wide = module.get_resize_output_image_size(picture, (longest, longest), (unit, unit))
        assert shape.grid == (1, high // unit, wide // unit), (width, height)


@pytest.mark.parametrize(("preset", "size", "grid"), [
    ("pixtral-12b", (1024, 1024), (64, 64)),
    ("pixtral-12b", (2000, 1000), (32, 64)),
    ("mistral-small-3.1-24b", (1540, 1540), (55, 55)),
    ("mistral-small-3.1-24b", (640, 480), (18, 23)),
])  # fmt: skip
def test_grids_of_published_checkpoints(preset, size, grid):
    config = config_of(preset)
    (shape,) = family_for(config).media_of_images(config, [size])
    assert shape.grid == (1, *grid)
    merge = 4 if preset.startswith("mistral") else 1
    assert shape.encoder_sequences == (shape.encoder_tokens,) == (merge * shape.tokens,)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_an_image_that_resizing_leaves_without_a_side_is_refused(size):
    config = config_of("pixtral-12b")
    with pytest.raises(InputError, match="it is too thin; crop it"):
        family_for(config).media_of_images(config, [size])


@both
def test_the_images_fill_the_columns_that_the_processor_makes(family, monkeypatch):
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    # The module of the processor takes one function from a module that needs torchvision; the same function stands here too.
    needed = SimpleNamespace(get_resize_output_image_size=module.get_resize_output_image_size)
    monkeypatch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", needed)
    monkeypatch.delitem(sys.modules, "transformers.models.pixtral.processing_pixtral", raising=False)
    processing = pytest.importorskip("transformers.models.pixtral.processing_pixtral")
    sys.modules.pop("transformers.models.pixtral.processing_pixtral")
    words = tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    found, merge = families.get(family), 2 if family == "mistral3" else 1
    whole = processing.PixtralProcessor(rules(size={"longest_edge": 24}), words, patch_size=4, spatial_merge_size=merge)
    config = found.tiny_config()
    config.image_token_id = whole.image_token_id
    sizes = [(40, 61), (17, 9), (5, 5)]
    inputs = whole(images=[image(*size) for size in sizes], text="text" + " [IMG] text" * 3, return_tensors="pt")
    columns = {"image": int((inputs["input_ids"] == whole.image_token_id).sum())}
    media = found.media(config, inputs, columns)["image"]
    assert media == found.media_of_images(config, sizes)
    assert sum(shape.tokens for shape in media) == columns["image"]
    assert inputs["pixel_values"].shape[0] == 3 and len({shape.grid for shape in media}) == 3


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.runs(name)) for name in ("pixtral", "mistral3", "lighton_ocr")]
)
def test_the_features_of_a_region_are_at_its_token(family):
    model, found = tiny.tiny_model(family), families.get(family)
    unit = 4 * found.merge(model.config)
    process = rules(size={"longest_edge": 400}, patch_size={"height": unit, "width": unit})
    plain, larger = image(5 * unit, 3 * unit), image(6 * unit, 4 * unit)
    for cell in range(15):
        other = plain.copy()
        corner = (cell % 5 * unit, cell // 5 * unit)
        other.paste((250, 10, 200), (*corner, corner[0] + unit, corner[1] + unit))
        features = []
        for one in (plain, other):  # behind a larger picture, so that this one is padded
            inputs = process(images=[larger, one], return_tensors="pt")
            with torch.no_grad():
                features.append(torch.cat(model.model.get_image_features(**inputs).pooler_output))
        first, second = found.media(model.config, inputs, {"image": 39})["image"]
        assert (first.grid, second.grid) == ((1, 4, 6), (1, 3, 5)) and len(features[0]) == 39
        change = (features[1] - features[0]).norm(dim=1)
        assert int(change.argmax()) == 24 + cell
        assert float(change[:24].max()) < 1e-5, "images do not see each other"


@both
def test_placeholders_without_sizes_are_refused(family):
    found = families.get(family)
    assert found.media(found.tiny_config(), {}, {"image": 0}) == {"image": []}
    with pytest.raises(InputError, match="image_sizes is missing: pass everything the processor returned"):
        found.media(found.tiny_config(), {}, {"image": 5})


def test_a_window_of_all_layers_is_said_by_the_window_alone():
    config = config_of("pixtral-12b")
    config.text_config.sliding_window = 4096
    assert family_for(config).decoder_windows(config) == (4096,) * 40
