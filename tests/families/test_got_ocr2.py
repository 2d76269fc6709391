"""GOT-OCR 2 and PP-Chart2Table: one grid for each page or tile, in the columns that the processor makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate import families
from foveate.families import family_for
from tests import tiny
from tests.families.features import flat, places
from tests.families.processors import image, image_processor, tokenizer

pytestmark = pytest.mark.runs("got_ocr2")
SIZES = [(640, 480), (1024, 1024), (20, 900)]


@pytest.fixture
def config() -> Any:
    from transformers import GotOcr2Config

    return GotOcr2Config()


def test_every_image_has_the_same_grid(config):
    (shape,) = {*families.get("got_ocr2").media_of_images(config, SIZES)}
    assert (shape.grid, shape.crops, shape.tokens, shape.encoder_tokens) == ((1, 16, 16), (), 256, 4096)
    assert shape.encoder_windows == (196,) * 25  # 64 patches a side in windows of 14, filled up to 70


@pytest.mark.parametrize("cut", [False, True])
def test_images_fill_the_columns_that_the_processor_makes(config, cut):
    processing = pytest.importorskip("transformers.models.got_ocr2.processing_got_ocr2")
    rules = image_processor("got_ocr2", "got_ocr2", "GotOcr2ImageProcessorPil", size={"height": 32, "width": 32})
    words = tokenizer(start="<img>", end="</img>", image_token="<imgpad>")
    whole = processing.GotOcr2Processor(rules, words)
    config.image_token_id = whole.image_token_id
    pictures = [image(96, 32), image(30, 30)]
    texts = ["text <img> <imgpad> </img> text", "<img> <imgpad> </img> text"]
    inputs = whole(pictures, texts, crop_to_patches=cut, padding=True, return_tensors="pt")
    columns = {"image": int((inputs["input_ids"] == whole.image_token_id).sum())}
    media = family_for(config).media(config, inputs, columns)["image"]
    assert sum(shape.tokens for shape in media) == columns["image"]
    assert [1 + len(shape.crops) for shape in media] == ([4, 1] if cut else [1, 1])


def test_pp_chart2table_is_the_same_model():
    configuration = pytest.importorskip("transformers.models.pp_chart2table.configuration_pp_chart2table")
    config = configuration.PPChart2TableConfig()
    assert family_for(config).title == "GOT-OCR 2"
    assert families.get("got_ocr2").media_of_images(config, SIZES)[0].tokens == 256


def test_the_features_of_a_region_are_at_its_cell_of_the_grid():
    model = tiny.tiny_model("got_ocr2")
    (shape,) = families.get("got_ocr2").media_of_images(model.config, [(24, 24)])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 24, 24, generator=generator)

    def features(given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return flat(model.model.get_image_features(given))

    before = features(pixels)
    for y in range(3):
        for x in range(3):
            other = pixels.clone()
            region = other[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            region += 4 * torch.randn(region.shape, generator=generator)
            assert places(shape, before, features(other))[0] == (0, y, x)
