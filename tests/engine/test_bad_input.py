"""Inputs and plans that cannot work: one clear line of a typed error, and a model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, Cache, DynamicCache, GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import DynamicLayer

import foveate
from foveate import families
from foveate.engine.compat import CACHE
from foveate.errors import (
    AttachError,
    FoveateError,
    InputError,
    PlanError,
    UnsupportedCombination,
    UnsupportedModel,
)
from tests import tiny
from tests.spies import state_of

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
FASTV = "fastv(layer=2, keep=0.4)"


def refused(model: nn.Module, call: Any, error: type[FoveateError], match: str) -> None:
    """`call` raises one clear line and leaves the model as it was."""
    before = state_of(model)
    with pytest.raises(error, match=match) as raised:
        call()
    assert isinstance(raised.value, FoveateError)
    assert "\n" not in str(raised.value)
    assert state_of(model) == before


def both_ways(model: nn.Module, inputs: dict[str, torch.Tensor], error: type[FoveateError], match: str) -> None:
    """In forward and in generate."""
    with torch.no_grad(), foveate.attach(model, FASTV):
        refused(model, lambda: model(**inputs), error, match)
        refused(model, lambda: tiny.generate(model, inputs), error, match)


@every_family
def test_pixels_without_a_placeholder(model_of, family):
    maker = tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(), maker.text(4)])])
    text = maker.inputs([tiny.Row([maker.text(9)])])
    both_ways(model_of(family), inputs | text, InputError, "placeholder")


@every_family
def test_more_images_than_placeholders(model_of, family):
    maker = tiny.Maker(family)
    pictures = [maker.picture(), maker.picture()]
    both = maker.inputs([tiny.Row([maker.text(3), pictures[0], maker.text(2), pictures[1], maker.text(4)])])
    one = maker.inputs([tiny.Row([maker.text(3), pictures[0], maker.text(4)])])
    media = {name: both[name] for name in both if "pixel" in name or "grid" in name}
    both_ways(model_of(family), one | media, InputError, "placeholder")


@every_family
def test_more_placeholders_than_images(model_of, family):
    maker = tiny.Maker(family)
    pictures = [maker.picture(), maker.picture()]
    both = maker.inputs([tiny.Row([maker.text(3), pictures[0], maker.text(2), pictures[1], maker.text(4)])])
    one = maker.inputs([tiny.Row([maker.text(3), pictures[0], maker.text(4)])])
    media = {name: one[name] for name in one if "pixel" in name or "grid" in name}
    both_ways(model_of(family), both | media, InputError, "placeholder")


@every_family
def test_a_placeholder_too_many(model_of, family):
    maker = tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(), torch.tensor([tiny.IMAGE]), maker.text(4)])])
    both_ways(model_of(family), inputs, InputError, "placeholder")


def test_placeholders_without_grids(model_of):
    maker = tiny.Maker("qwen2_5_vl")
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(), maker.text(4)])])
    del inputs["image_grid_thw"]
    both_ways(model_of("qwen2_5_vl"), inputs, InputError, "image_grid_thw is missing")


@every_family
def test_a_layer_beyond_the_model(model_of, family):
    model = model_of(family)
    layers = model.config.get_text_config().num_hidden_layers
    message = f"layer={layers}: this model has {layers} decoder layers, write 1..{layers - 1}"
    refused(model, lambda: foveate.attach(model, f"fastv(layer={layers}, keep=0.5)"), PlanError, message)
    refused(model, lambda: foveate.attach(model, f"uniform(layer={layers}, keep=0.5)"), PlanError, message)
    foveate.attach(model, f"uniform(layer={layers - 1}, keep=0.5)").detach()


def test_a_layer_behind_sliding_attention_only_names_the_smallest_valid_one(model_of):
    model = model_of("gemma3")
    message = r"fastv\(layer=1\).*attends to the whole prompt.*the smallest valid layer is 2"
    refused(model, lambda: foveate.attach(model, "fastv(layer=1, keep=0.5)"), PlanError, message)
    foveate.attach(model, "uniform(layer=1, keep=0.5)").detach()  # asks for no attention
    foveate.attach(model, "fastv(layer=2, keep=0.5)").detach()


def test_a_model_without_full_attention_says_so():
    model = tiny.tiny_model("gemma3")
    model.config.text_config.layer_types = ["sliding_attention"] * 6
    refused(model, lambda: foveate.attach(model, FASTV), PlanError, "no full-attention layer")


def test_a_model_that_no_family_describes():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))
    refused(model, lambda: foveate.attach(model, FASTV), UnsupportedModel, "no family file describes model type 'gpt2'")


def test_a_relative_with_another_encoder():
    config = families.get("llava").tiny_config()
    config.vision_config = AutoConfig.for_model("dinov2")
    with pytest.raises(UnsupportedModel, match="'dinov2' encoder"):
        families.family_for(config)


@every_family
def test_the_model_without_its_head(model_of, family):
    base = model_of(family).model
    refused(base, lambda: foveate.attach(base, FASTV), AttachError, "attach the model with its head")


@every_family
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_a_cache_kind_that_cannot_be_pruned(model_of, family, kind):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    with foveate.attach(model, FASTV):
        refused(
            model,
            lambda: tiny.generate(model, inputs, cache_implementation=kind),
            UnsupportedCombination,
            f"cache_implementation='{kind}'",
        )
        model.generation_config.cache_implementation = kind
        try:
            refused(model, lambda: tiny.generate(model, inputs), UnsupportedCombination, f"cache_implementation='{kind}'")
        finally:
            model.generation_config.cache_implementation = None


class _UnknownLayer(DynamicLayer):
    """A kind of cache layer that somebody else wrote."""


@every_family
def test_an_unknown_cache_passed_in(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    cache = Cache(layers=[_UnknownLayer() for _ in range(6)])
    with torch.no_grad(), foveate.attach(model, FASTV):
        refused(
            model,
            lambda: model(**inputs, **{CACHE: cache}, use_cache=True),
            UnsupportedCombination,
            "_UnknownLayer cannot hold a pruned cache",
        )
        assert cache.get_seq_length() == 0, "refused before anything is written"
        expected = tiny.generate(model, inputs)
        lazy = tiny.generate(model, inputs, **{CACHE: DynamicCache()})
        # A bare DynamicCache keeps Gemma's whole past and lets the mask say what a sliding layer sees.
        assert tiny.greatest_difference(expected, lazy) < LOGITS


@every_family
def test_the_plain_model_works_behind_every_refusal(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    plain = tiny.generate(model, inputs, tokens=2)
    with foveate.attach(model, FASTV):
        pruned = tiny.generate(model, inputs, tokens=2)
        with pytest.raises(UnsupportedCombination):
            tiny.generate(model, inputs, cache_implementation="offloaded_static")
        with pytest.raises(UnsupportedCombination):
            model(**inputs, output_attentions=True)
        assert tiny.greatest_difference(tiny.generate(model, inputs, tokens=2), pruned) == 0
    assert tiny.greatest_difference(tiny.generate(model, inputs, tokens=2), plain) == 0
