"""ERNIE 4.5 VL: each token goes to the experts of its kind, also when others are gone; grids of images and videos."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import foveate
from foveate import families
from foveate.core.shape import LayerShape
from foveate.cost.flops import decode_flops, decoder_prefill_flops
from foveate.errors import InputError
from tests import tiny
from tests.families.processors import image, image_processor
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns

pytestmark = pytest.mark.skipif("ernie4_5_vl_moe" not in tiny.ALL_FAMILIES, reason="this transformers has no ERNIE 4.5 VL")
FAMILY = families.get("ernie4_5_vl_moe")
LOGITS = 2e-4


def config():
    from transformers import Ernie4_5_VLMoeConfig

    return Ernie4_5_VLMoeConfig(text_config={}, vision_config={})


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_survivors_go_to_the_experts_of_their_kind(layer, kind):
    model, maker = tiny.tiny_model("ernie4_5_vl_moe"), tiny.Maker("ernie4_5_vl_moe")
    rows = [tiny.Row([maker.text(5), maker.picture(0, kind), maker.text(4)]), tiny.Row([maker.picture(1, kind), maker.text(9)])]
    inputs = maker.inputs(rows)
    seen: dict[int, torch.Tensor] = {}

    def note(number):
        return lambda module, args, output: seen.__setitem__(number, args[1])

    handles = [model.model.language_model.layers[at].mlp.register_forward_hook(note(at)) for at in range(1, 5)]
    with torch.no_grad(), foveate.attach(model, f"random(layer={layer}, keep=0.5)") as attachment:
        pruned = model(**inputs, use_cache=False).logits[:, -1]
        alive = alive_columns(attachment.trace, inputs)[0]
    for handle in handles:
        handle.remove()
    types, real = inputs["moe_mm_token_type_ids"], inputs["attention_mask"].bool()
    for at, given in seen.items():
        kept = alive if at >= layer else torch.ones_like(alive)
        for row in range(2):
            own = types[row, kept[row] & real[row]]
            assert torch.equal(given[row, given.shape[1] - len(own) :], own)  # shorter rows have their holes on the left
    with torch.no_grad(), dense_reference(model, {layer: alive}):
        dense = model(**inputs, use_cache=False).logits[:, -1]
        as_text = model(**inputs | {"moe_mm_token_type_ids": torch.zeros_like(types)}, use_cache=False).logits[:, -1]
    assert float((pruned - dense).abs().max()) < LOGITS
    assert float((as_text - dense).abs().max()) > 0.1


def test_many_sizes_give_the_grids_of_the_resize_rules():
    rules = pytest.importorskip("transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe")
    made, rng = config(), random.Random(0)
    for _ in range(2000):
        width, height, frames = rng.randint(15, 4000), rng.randint(15, 4000), rng.randint(1, 40)
        if max(width, height) > 200 * min(width, height):
            continue
        high, wide = rules.smart_resize(height, width, 28, 56 * 56, 28 * 28 * 6177)
        (shape,) = FAMILY.media_of_images(made, [(width, height)])
        assert shape.grid == (1, high // 28, wide // 28) and shape.encoder_sequences == (high * wide // 196,)
        high, wide = rules.smart_resize(height, width, 28, 299 * 28 * 28, 1196 * 28 * 28)
        shape = FAMILY.media_of_video(made, (width, height), frames)
        # A frame is added where their number is odd, and two of them make one.
        assert shape.grid == ((frames + 1) // 2, high // 28, wide // 28)
        assert shape.encoder_sequences == (high * wide // 196,) * (frames + frames % 2)
    with pytest.raises(InputError, match="a video has at least 1"):
        FAMILY.media_of_video(made, (640, 480), 0)


@pytest.mark.parametrize("size", [(640, 480), (40, 900), (1200, 1000)])
def test_a_picture_gives_the_grid_of_its_size(size):
    found = image_processor("ernie4_5_vl_moe", "ernie4_5_vl_moe", "Ernie4_5_VLMoeImageProcessorPil")
    inputs = found(images=[image(*size)], return_tensors="pt")
    given = FAMILY.media(config(), inputs, {"image": 1, "video": 0})["image"]
    assert given == FAMILY.media_of_images(config(), [size])
    assert len(inputs["pixel_values"]) == given[0].encoder_tokens


def test_two_frames_of_a_video_make_one():
    inputs = {"video_grid_thw": torch.tensor([[4, 4, 8]])}
    (shape,) = FAMILY.media(FAMILY.tiny_config(), inputs, {"image": 0, "video": 16})["video"]
    assert shape.grid == (2, 2, 4) and shape.encoder_sequences == (32,) * 4


def test_the_experts_of_text_and_of_visual_tokens_are_told_apart():
    decoder = FAMILY.model_shape(config()).decoder
    sparse = LayerShape(4, 128, 6 * 512 + 2 * 1536, other_weights=2560 * 64, text_intermediate=8 * 1536)
    assert decoder.layer_shapes == (LayerShape(4, 128, 12288),) + (sparse,) * 27
    wider = 27 * 3 * 2 * 2560 * (sparse.text_intermediate - sparse.intermediate)
    visual = decoder_prefill_flops(decoder, [100] * 28)
    assert decoder_prefill_flops(decoder, [100] * 28, 30) == visual + 30 * wider
    # A generated token is text.
    alone = replace(decoder, layer_shapes=(LayerShape(4, 128, 12288),) + (replace(sparse, text_intermediate=None),) * 27)
    assert decode_flops(decoder, [100] * 28, 5) == decode_flops(alone, [100] * 28, 5) + 5 * wider
