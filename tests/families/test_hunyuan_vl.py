"""HunYuan-VL: line tokens that stay, the axis that counts images, grids of its processor."""

from __future__ import annotations

import random

import pytest
import torch

import foveate
from foveate import families
from foveate.errors import UnsupportedCombination
from tests import tiny
from tests.families.features import flat, painted, places
from tests.families.processors import image, image_processor
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns

pytestmark = pytest.mark.skipif("hunyuan_vl" not in tiny.ALL_FAMILIES, reason="this transformers has no HunYuan-VL")
FAMILY = families.get("hunyuan_vl")
LOGITS = 2e-4


def config():
    from transformers import HunYuanVLConfig

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 16, 16, 16]}
    return HunYuanVLConfig(text_config={"head_dim": 128, "rope_parameters": rope}, vision_config={})


def test_many_sizes_give_the_grids_of_the_resize_rule():
    rules = pytest.importorskip("transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl")
    made, rng = config(), random.Random(0)
    sizes = [(rng.randint(30, 5000), rng.randint(30, 5000)) for _ in range(2000)]
    for (width, height), shape in zip(sizes, FAMILY.media_of_images(made, sizes), strict=True):
        high, wide = rules.smart_resize(height, width, 32, 512 * 512, 2048 * 2048)
        assert shape.grid == (1, high // 32, wide // 32)
        # As the processor counts them: a token after each line, one on either end.
        assert shape.tokens == high // 32 * (wide // 32 + 1) + 2
        assert shape.encoder_sequences == (high * wide // 256,)


@pytest.mark.parametrize("size", [(640, 480), (60, 900), (1200, 1000)])
def test_a_picture_gives_the_grid_of_its_size(size):
    found = image_processor("hunyuan_vl", "hunyuan_vl", "HunYuanVLImageProcessorPil")
    inputs = found(images=[image(*size)], return_tensors="pt")
    given = FAMILY.media(config(), inputs, {"image": 1})["image"]
    assert given == FAMILY.media_of_images(config(), [size])
    assert len(inputs["pixel_values"]) == given[0].encoder_tokens


def test_the_features_of_a_region_are_at_its_cell_and_separators_are_none_of_it():
    # 24 x 16 pixels in patches of 4: 3 x 2 cells of 8 x 8 pixels.
    size = {"shortest_edge": 1, "longest_edge": 10_000}
    rules = image_processor("hunyuan_vl", "hunyuan_vl", "HunYuanVLImageProcessorPil", patch_size=4, size=size)
    model, plain = tiny.tiny_model("hunyuan_vl"), image(24, 16)

    def features(picture):
        with torch.no_grad():
            return flat(model.model.get_image_features(**rules(images=[picture], return_tensors="pt")))

    (shape,) = FAMILY.media(model.config, rules(images=[plain], return_tensors="pt"), {"image": 10})["image"]
    assert shape.grid == (1, 2, 3) and shape.separators == (0, 4, 8, 9)
    before = features(plain)
    for y in range(2):
        for x in range(3):
            after = features(painted(plain, (8 * x, 8 * y, 8 * x + 8, 8 * y + 8)))
            assert places(shape, before, after) == [(0, y, x)]
            assert torch.equal(before[list(shape.separators)], after[list(shape.separators)])


def test_line_tokens_stay():
    model, maker = tiny.tiny_model("hunyuan_vl"), tiny.Maker("hunyuan_vl")
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(0), maker.text(5)])])
    with foveate.attach(model, "random(layer=1, keep=1tok)") as attachment:
        tiny.generate(model, inputs, tokens=1)
        alive = alive_columns(attachment.trace, inputs)[0][0]
    (run,) = (inputs["input_ids"][0] == 90).nonzero(as_tuple=True)
    kept = alive[run].nonzero().flatten().tolist()
    assert set(kept) >= {0, 5, 10, 15, 20, 21} and len(kept) == 7


@pytest.mark.parametrize("sections", [[1, 1, 1, 1], [2, 1, 1], [1, 1, 2]])
@pytest.mark.parametrize("layer", [1, 3])
def test_survivors_keep_their_column_row_and_number_of_the_image(sections, layer):
    made = FAMILY.tiny_config()
    made.text_config.rope_parameters["mrope_section"] = sections
    model, maker = tiny.tiny_model("hunyuan_vl", config=made), tiny.Maker("hunyuan_vl")
    row = tiny.Row([maker.text(5), maker.picture(0), maker.text(4), maker.picture(1), maker.picture(2), maker.text(6)])
    inputs = maker.inputs([row])
    plan = f"random(layer={layer}, keep=0.4)"
    with foveate.attach(model, plan) as attachment:
        pruned = tiny.generate(model, inputs)
        alive = alive_columns(attachment.trace, inputs)[0]
    with dense_reference(model, {layer: alive}):
        dense = tiny.generate(model, inputs, use_cache=False)
    assert torch.equal(pruned.sequences, dense.sequences)
    assert tiny.greatest_difference(pruned, dense) < LOGITS


def test_transformers_counts_images_through_a_batch():
    """Why the tiny config gives that axis no dimension. When this fails, it may have one."""
    made = FAMILY.tiny_config()
    model, maker = tiny.tiny_model("hunyuan_vl", config=made), tiny.Maker("hunyuan_vl")
    inputs = maker.inputs([tiny.Row([maker.text(2), maker.picture(2), maker.text(2)]) for _ in range(2)])
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"], inputs["attention_mask"]
    )
    visual = inputs["input_ids"][0] == 90
    assert [int(positions[3, row][visual][2]) for row in range(2)] == [0, 1]


def test_a_video_is_refused():
    with pytest.raises(UnsupportedCombination, match="HunYuan-VL takes no video"):
        FAMILY.media_of_video(config(), (640, 480), 4)
