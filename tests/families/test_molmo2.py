"""Molmo2: crops by the processor's rules, picture tokens that all see each other, and layers of two rotaries."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

import foveate
from foveate import families
from foveate.errors import InputError, UnsupportedCombination
from foveate.families.molmo2 import _pooling, _raster
from tests import tiny
from tests.families.features import flat, places
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns

pytestmark = pytest.mark.skipif("molmo2" not in tiny.ALL_FAMILIES, reason="this transformers has no Molmo2")
FAMILY = families.get("molmo2")
LOGITS = 2e-4


@pytest.fixture(scope="module")
def rules():
    return pytest.importorskip("transformers.models.molmo2.image_processing_molmo2")


def config():
    from transformers import Molmo2Config

    return Molmo2Config(text_config={}, vision_config={}, adapter_config={})


def test_many_sizes_give_the_grids_of_the_processor(rules):
    made, rng = config(), random.Random(0)
    size = {"height": 378, "width": 378}
    usual = SimpleNamespace(max_crops=8, overlap_margins=[4, 4], patch_size=14, pooling_size=[2, 2], size=size)
    sizes = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(2000)]
    sizes += [(rng.randint(1, 400), rng.randint(1, 4000)) for _ in range(1000)] + [(112, 112), (112, 500), (1, 1), (378, 378)]
    for (width, height), shape in zip(sizes, FAMILY.media_of_images(made, sizes), strict=True):
        (small_high, small_wide, high, wide), crops = rules.Molmo2ImageProcessor.get_image_grid_and_crops(usual, height, width)
        assert shape.grids == ((1, small_high, small_wide), (1, high, wide)), (width, height)
        assert shape.encoder_sequences == (729,) * crops


@pytest.mark.parametrize(("side", "pool"), [(9, 2), (9, 3), (27, 2), (10, 2)])
def test_tiny_models_pool_the_patches_that_the_processor_pools(rules, side, pool):
    places = torch.arange(side * side).view(side, side)
    expected, high, wide = rules.arange_for_pooling(places, pool, pool)
    found = _pooling(places, pool)
    assert found.shape[:2] == (high, wide) and torch.equal(found.flatten(0, 1), expected)


@pytest.mark.parametrize("tiling", [(1, 1), (1, 4), (2, 1), (2, 3)])
def test_tiny_crops_lie_as_those_of_the_processor(rules, tiling):
    down, across = tiling
    side = 9  # a window of one patch between margins of four
    backend = SimpleNamespace(resize=lambda image, **_: image, rescale_and_normalize=lambda image, *_: image)
    canvas = torch.zeros(1, 3, down + 8, across + 8)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(rules, "compute_crop_geometry", lambda *_, **__: (down, across, down + 8, across + 8))
        _, expected = rules.Molmo2ImageProcessor._build_overlapping_crops(
            backend, canvas, 8, [4, 4], side, None, False, 1.0, False, [0.0] * 3, [1.0] * 3, 1
        )
    assert torch.equal(_raster(down, across, side), expected.long())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_features_of_a_patch_are_at_its_token_of_each_copy(number):
    model = tiny.tiny_model("molmo2")
    medium = tiny.Maker("molmo2").picture(number)
    names = ("pixel_values", "image_token_pooling", "image_grids")
    given = {name: medium.inputs[name] for name in names}
    (shape,) = FAMILY.media(model.config, medium.inputs, {"image": int((medium.ids == 90).sum())})["image"]
    assert shape.tokens == int((medium.ids == 90).sum())

    def features(pixels):
        with torch.no_grad():
            return flat(model.model.get_image_features(**given | {"pixel_values": pixels}))

    pixels = given["pixel_values"]
    before, small = features(pixels), shape.grids[0][1] * shape.grids[0][2]
    for token in (0, small - 1, small, small + 3, shape.tokens - 1):
        patches = given["image_token_pooling"][token]
        changed = pixels.clone().flatten(0, 1)
        changed[patches[patches >= 0]] += 4
        after = features(changed.view(pixels.shape))
        part = int(token >= small)
        left = token - part * small
        wide = shape.grids[part][2]
        assert places(shape, before, after)[part] == (0, left // wide, left % wide)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_all_picture_tokens_of_a_prompt_see_each_other_behind_a_plan(backend):
    """An early picture sees a late one: what is changed in the second reaches the first one's survivors."""
    model, maker = tiny.tiny_model("molmo2", backend), tiny.Maker("molmo2")
    with torch.no_grad():
        model.model.multi_modal_projector.image_projector.down_proj.weight.mul_(100)
    row = tiny.Row([maker.text(3), maker.picture(0), maker.text(4), maker.picture(0), maker.text(5)])
    inputs = maker.inputs([row])
    other = inputs | {"pixel_values": inputs["pixel_values"].clone()}
    other["pixel_values"][-1] += 3  # the crop of the second picture
    first = (inputs["input_ids"][0] == 90).nonzero().flatten()[:50]
    plan = "uniform(layer=1, keep=0.5)"
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        states = [model(**given, output_hidden_states=True).hidden_states for given in (inputs, other)]
        alive = alive_columns(attachment.trace, inputs)[0][0]
    change = (states[0][-1] - states[1][-1])[0].norm(dim=1)
    kept = first[alive[first]]
    assert 20 < len(kept) < 30 and bool((change[kept] > 1e-4).all())
    assert bool((change[:3] == 0).all())  # text in front of both sees neither
    gaps = [column for column in range(int(first[-1]) + 2, len(alive)) if int(inputs["input_ids"][0, column]) < 85]
    assert bool((change[gaps[:4]] > 0).all())  # text in between sees the first, which has seen the second


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_each_layer_rotates_survivors_by_its_own_rotary(layer):
    model, maker = tiny.tiny_model("molmo2"), tiny.Maker("molmo2")
    inputs = maker.inputs(tiny.ragged_rows(maker, 2))
    given: dict[int, torch.Tensor] = {}

    def note(number):
        return lambda module, args, kwargs: given.__setitem__(number, kwargs["position_embeddings"][0])

    layers = model.model.language_model.layers
    handles = [one.self_attn.register_forward_pre_hook(note(at), with_kwargs=True) for at, one in enumerate(layers)]
    with torch.no_grad(), foveate.attach(model, f"random(layer={layer}, keep=0.5)") as attachment:
        pruned = model(**inputs, use_cache=False).logits[:, -1]
        alive = alive_columns(attachment.trace, inputs)[0]
    for handle in handles:
        handle.remove()
    scaled, unscaled = model.model.language_model.rotary_emb, model.model.language_model.rotary_emb_unscaled
    real, every = inputs["attention_mask"].bool(), torch.arange(inputs["input_ids"].shape[1])[None].expand(2, -1)
    for at, cos in given.items():
        rotary = scaled if at in (1, 3) else unscaled
        own = rotary(torch.zeros(1), every)[0]
        for row in range(2):
            kept = alive[row] if at >= layer else torch.ones_like(alive[row])
            expected = own[row][kept & real[row]]
            found = cos.expand(2, -1, -1)[row]
            assert torch.equal(found[len(found) - len(expected) :], expected)
    with torch.no_grad(), dense_reference(model, {layer: alive}):
        dense = model(**inputs, use_cache=False).logits[:, -1]
    assert float((pruned - dense).abs().max()) < LOGITS


def test_a_video_is_frames_of_a_third_of_the_patches_on_each_side():
    shape = FAMILY.media_of_video(config(), (640, 480), 8)
    assert (shape.kind, shape.grid, shape.encoder_sequences) == ("video", (8, 9, 9), (729,) * 8)
    with pytest.raises(InputError, match="a video has at least 1"):
        FAMILY.media_of_video(config(), (640, 480), 0)


def test_what_does_not_fit_is_refused():
    made = FAMILY.tiny_config()
    both = {"pixel_values": torch.zeros(1), "pixel_values_videos": torch.zeros(1)}
    with pytest.raises(UnsupportedCombination, match="pass images and videos in different calls"):
        FAMILY.media(made, both, {"image": 4})
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        with pytest.raises(InputError, match=f"the prompt has {kind} placeholders but {kind}_grids is missing"):
            FAMILY.media(made, {pixels: torch.zeros(1)}, {"image": 4})
    assert FAMILY.media(made, {}, {"image": 0}) == {"image": []}
    with pytest.raises(InputError, match="sides are at least 1"):
        FAMILY.media_of_images(made, [(0, 4)])
