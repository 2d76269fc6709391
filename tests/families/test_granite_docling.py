"""Granite Docling: tiles by its own rule, one page from the next by markers, coarse and fine, features between layers."""

from __future__ import annotations

import random

import pytest
import torch

import foveate
from foveate import families
from foveate.errors import InputError, UnsupportedModel
from tests import tiny
from tests.families.features import flat, painted, places
from tests.families.processors import image, image_processor, tokenizer
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns

pytestmark = pytest.mark.skipif("granite_docling" not in tiny.ALL_FAMILIES, reason="this transformers has no Granite Docling")
FAMILY = families.get("granite_docling")
LOGITS = 2e-4


def config():
    from transformers import GraniteDoclingConfig

    return GraniteDoclingConfig(text_config={}, vision_config={})


def processor(**options):
    """The processor itself, whose markers are words of the tokenizer; newlines are none and do not stand between tiles."""
    from transformers import GraniteDoclingProcessor

    pixels = image_processor("granite_docling", "granite_docling", "GraniteDoclingImageProcessorPil", **options)
    marks = {f"cell_{row}_{column}": f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)}
    around, whole = "<fake_token_around_image>", "<global-img>"
    words = tokenizer(image_token="<image>", around_token=around, whole_token=whole, newline="\n", **marks)
    return GraniteDoclingProcessor(pixels, words, image_seq_len=64)


def test_many_sizes_give_the_tiles_of_the_processor():
    rules = pytest.importorskip("transformers.models.granite_docling.image_processing_pil_granite_docling")
    rng, made = random.Random(0), config()
    sizes = [(rng.randint(1, 6000), rng.randint(1, 6000)) for _ in range(2000)]
    sizes += [(rng.randint(1, 60), rng.randint(1, 4000)) for _ in range(500)] + [(512, 512), (17 * 512, 512), (1, 1)]
    pixels = rules.GraniteDoclingImageProcessorPil()
    for (width, height), shape in zip(sizes, FAMILY.media_of_images(made, sizes), strict=True):
        tiles = pixels.get_number_of_image_patches(height, width)
        assert shape.grids == ((1, 8, 8),) * tiles, (width, height)
        assert shape.encoder_tokens == 1024 * tiles and shape.encoder_sequences == (1024,) * tiles


@pytest.mark.parametrize("fine", [False, True])
def test_pages_are_told_apart_in_the_prompt_of_the_processor(fine):
    whole, made = processor(max_patches=4, fine_route=fine), config()
    # Two pages of one tile stand side by side: nothing closes the first but a line break.
    sizes = [[(512, 512), (500, 500)], [(1024, 512), (512, 512), (1024, 1024)], []]
    texts = ["text <image> <image> text", "<image> text <image> <image>", "text"]
    inputs = whole(images=[[image(*size) for size in row] for row in sizes], text=texts, padding=True, return_tensors="pt")
    made.image_token_id = whole.image_token_id
    columns = {"image": int((inputs["input_ids"] == made.image_token_id).sum())}
    media = FAMILY.media(made, inputs, columns)["image"]
    assert [len(shape.grids) for shape in media] == [1, 1, 3, 1, 5]
    side = 16 if fine else 8
    assert all(grid == (1, side, side) for shape in media for grid in shape.grids)
    assert sum(shape.tokens for shape in media) == columns["image"]
    assert ("tile_fine_mask" in inputs) is fine and made.vision_config.scale_factor == 4
    assert inputs["pixel_values"].shape[1] == 9


@pytest.mark.parametrize("fine", [False, True])
def test_the_features_of_a_region_are_at_its_token(fine):
    size, tile = {"height": 24, "width": 24}, 24
    rules = image_processor("granite_docling", "granite_docling", "GraniteDoclingImageProcessorPil", size=size, fine_route=fine)
    model, plain = tiny.tiny_model("granite_docling"), image(2 * tile, tile)

    def features(picture):
        given = rules(images=[[picture]], return_tensors="pt")
        given = {name: given[name] for name in given if name not in ("rows", "cols")}
        with torch.no_grad():
            return flat(model.model.get_image_features(**given))

    cells = 6 if fine else 3
    cell = tile // cells
    (shape,) = FAMILY.media_of_images(model.config, [plain.size])
    before = features(plain).view(3, cells, cells, -1)
    assert len(shape.grids) == 3
    for x, y in [(0, 0), (cells, 1), (cells + 1, cells - 1)]:
        after = features(painted(plain, (cell * x, cell * y, cell * x + cell, cell * y + cell))).view(before.shape)
        change = (after - before).norm(dim=-1)
        assert divmod(int(change[:2].argmax()), cells * cells) == (x // cells, y * cells + x % cells)
        if not fine:
            assert places(shape, before.flatten(0, 2), after.flatten(0, 2))[2] == (0, y, x // 2)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_features_between_layers_are_added_to_whom_a_plan_kept(layer):
    model, maker = tiny.tiny_model("granite_docling"), tiny.Maker("granite_docling")
    mergers = model.model.vision_model.connector.coarse.deepstack_mergers
    with torch.no_grad():
        for merger in mergers:
            merger.linear_2.weight.mul_(30)  # as large as the states that they are added to
    inputs = maker.inputs(tiny.ragged_rows(maker, 2))
    with torch.no_grad(), foveate.attach(model, f"random(layer={layer}, keep=0.5)") as attachment:
        pruned = model(**inputs, use_cache=False).logits[:, -1]
        alive = alive_columns(attachment.trace, inputs)[0]
    with torch.no_grad(), dense_reference(model, {layer: alive}):
        dense = model(**inputs, use_cache=False).logits[:, -1]
        for merger in mergers:
            merger.linear_2.weight.zero_()
        without = model(**inputs, use_cache=False).logits[:, -1]
    assert float((pruned - dense).abs().max()) < LOGITS
    assert float((dense - without).abs().max()) > 0.1


def test_what_does_not_fit_is_refused():
    made = FAMILY.tiny_config()
    maker = tiny.Maker("granite_docling")
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(0), maker.text(6)])])
    with pytest.raises(InputError, match="row 0 has placeholders for 3 tiles, but pixel values for 2 are given"):
        FAMILY.media(made, inputs | {"pixel_values": inputs["pixel_values"][:, :2]}, {"image": 27})
    with pytest.raises(InputError, match="a tile fills 36 image placeholder tokens, but 9 follow each other"):
        FAMILY.media(made, inputs | {"tile_fine_mask": torch.ones(1, dtype=torch.bool)}, {"image": 27})
    with pytest.raises(InputError, match="sides are at least 1"):
        FAMILY.media_of_images(made, [(0, 4)])
    made.vision_config.deepstack_visual_indexes = [0, 1, 2, 3, 4]
    with pytest.raises(UnsupportedModel, match="nothing runs after the last one"):
        families.family_for(made)
