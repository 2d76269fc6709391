"""Calls without generate(), features made elsewhere, defaults of torch: what is pruned, refused, or said once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate.engine.compat import CACHE
from foveate.errors import FoveateWarning, UnsupportedCombination
from tests import tiny
from tests.engine.prompts import FASTV, LOGITS, MODELS, plan_of, prompt
from tests.marks import one_and_more
from tests.tiny import Maker, Row


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_an_answer_that_is_scored_is_scored_as_it_was_generated():
    model, inputs = MODELS["llava", "sdpa"], prompt()
    width = inputs["input_ids"].shape[1]
    with foveate.attach(model, FASTV.format(layer=2)) as attachment:
        answer = tiny.generate(model, inputs)
        for cache in ({}, {CACHE: DynamicCache()}, {"use_cache": False}):
            with attachment.conversation(prompt_length=width):
                scored = model(input_ids=answer.sequences, pixel_values=inputs["pixel_values"], **cache).logits
            assert float((scored[:, width - 1 : -1] - torch.stack(answer.logits, 1)).abs().max()) < LOGITS


def test_a_gate_in_a_loop_by_hand_is_refused_where_it_could_do_nothing():
    model, inputs, cache = MODELS["llava", "sdpa"], prompt(), DynamicCache()
    with foveate.attach(model, "random_gate(layer=2, keep=0.5, recent=0)"):
        with pytest.warns(FoveateWarning, match="random_gate gated nothing in this call"):
            model(**inputs, **{CACHE: cache})
        with pytest.raises(UnsupportedCombination, match=r"attachment\.conversation\(prompt_length=n\)"):
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache})


def merged(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    return embeddings.masked_scatter((inputs["input_ids"] == tiny.IMAGE)[..., None], features)


@pytest.mark.since((5, 17), "before, features have another form")
def test_pictures_that_are_merged_already_are_said_once_to_be_left_alone():
    model, inputs = MODELS["llava", "sdpa"], prompt()
    embeddings = merged(model, inputs)
    plain = model(inputs_embeds=embeddings).logits
    with foveate.attach(model, FASTV.format(layer=2)):
        with pytest.warns(FoveateWarning, match="inputs_embeds without input_ids"):
            got = model(inputs_embeds=embeddings).logits
        assert torch.equal(got, plain)
        model(inputs_embeds=embeddings)  # a second warning would be an error


def test_a_language_model_that_is_called_on_its_own_says_once_that_it_prunes_nothing():
    model, inputs = MODELS["llava", "sdpa"], prompt()
    decoder = model.get_submodule("model.language_model")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    plain = decoder(inputs_embeds=embeddings).last_hidden_state
    with foveate.attach(model, FASTV.format(layer=2)):
        with pytest.warns(FoveateWarning, match="the language model was called on its own"):
            got = decoder(inputs_embeds=embeddings).last_hidden_state
        assert torch.equal(got, plain)
        decoder(inputs_embeds=embeddings)


@pytest.mark.since((5, 20), "before, features are not passed as mm_encoder_outputs")
def test_features_encoded_beforehand_are_said_once_to_have_met_no_stage():
    model, inputs = MODELS["llava", "sdpa"], prompt()
    features = {"image": model.model.get_image_features(inputs["pixel_values"], return_dict=True)}
    with foveate.attach(model, "random(site=vision, layer=1, keep=0.5)"):
        with pytest.warns(FoveateWarning, match="encoded before this call"):
            model(input_ids=inputs["input_ids"], mm_encoder_outputs=dict(features))
        model(input_ids=inputs["input_ids"], mm_encoder_outputs=dict(features))


def test_a_picture_that_holds_no_numbers_spoils_its_own_row_only():
    model, maker = MODELS["llava", "sdpa"], Maker("llava")
    rows = [Row([maker.text(5), maker.picture(), maker.text(7)]) for _ in range(2)]
    inputs = maker.inputs(rows)
    for value in (float("nan"), float("inf")):
        for plan in ("random(site=vision, layer=1, keep=0.5)", "tome(site=vision, layer=1, keep=0.6)", FASTV.format(layer=2)):
            with foveate.attach(model, plan):
                wanted = model(**inputs).logits
                broken = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
                broken["pixel_values"][1] = value
                got = model(**broken).logits
            assert float((got[0] - wanted[0]).abs().max()) < LOGITS
            assert bool(got[1].isnan().any())


@pytest.mark.parametrize("family", one_and_more(tiny.FAMILIES))
def test_default_number_formats_and_devices_are_not_ours(family):
    model, inputs = MODELS[family, "sdpa"], prompt(family)
    plans = [
        FASTV,
        "random(site=pre_llm, keep=0.5)",
        "fastv(layer={layer}, keep=0.5) | random_gate(layer={layer}, keep=0.5, recent=0)",
    ]
    if (layer := tiny.encoder_layer(family)) is not None:
        plans += [
            f"{name}(site=vision, layer={layer}, keep=50%)"
            for name in ("random", "tome", "partition", "illava_v1", "illava_v2")
        ]
    for plan in plans:
        with foveate.attach(model, plan_of(family, plan)):
            wanted = tiny.generate(model, inputs, tokens=3)
            torch.set_default_dtype(torch.bfloat16)
            try:
                got = tiny.generate(model, inputs, tokens=3)
            finally:
                torch.set_default_dtype(torch.float32)
            assert tiny.greatest_difference(got, wanted) < LOGITS
            if family != "llava":
                continue  # the plain models of the others make tensors on the default device themselves
            torch.set_default_device("meta")
            try:
                got = tiny.generate(model, inputs, tokens=3)
            finally:
                torch.set_default_device(None)
            assert tiny.greatest_difference(got, wanted) < LOGITS
