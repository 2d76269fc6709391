"""Finding the family of a model, refusing what no family file describes, and what every family file promises."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

import foveate
from foveate import families
from foveate.core.shape import ModelShape
from foveate.core.site import SiteKind
from foveate.errors import UnknownName, UnsupportedModel
from foveate.families import Family, family_for
from tests import tiny

PARAMETERS = 200_000


@pytest.mark.parametrize("name", families.names())
def test_every_family_describes_its_own_tiny_config(name):
    family = families.get(name)
    config = family.tiny_config()
    assert type(family_for(config)) is type(family)
    assert config.model_type in family.model_types
    shape = family.model_shape(config)
    assert isinstance(shape, ModelShape) and shape.family == name
    assert len(shape.decoder.layer_windows) == shape.decoder.layers == config.get_text_config().num_hidden_layers
    assert None in shape.decoder.layer_windows
    assert set(family.placeholder_ids(config)) == set(family.placeholders)
    assert family.title and family.notes


def on_meta(family):
    with torch.device("meta"):
        return getattr(transformers, family.auto_class).from_config(family.tiny_config())


@pytest.mark.parametrize("name", families.names())
def test_tiny_models_stay_tiny(name):
    model = on_meta(families.get(name))
    assert sum(parameter.numel() for parameter in model.parameters()) < PARAMETERS


@pytest.mark.parametrize("name", families.names())
def test_the_paths_of_a_family_exist_in_its_model(name):
    family = families.get(name)
    model = on_meta(family)
    assert model.get_submodule(family.base) is not None
    layers = model.get_submodule(family.decoder + ".layers")
    stateful = family.stateful_layers(model.config)
    assert all(layer.get_submodule(family.attention) is not None for at, layer in enumerate(layers) if at not in stateful)


@pytest.mark.parametrize("name", families.names())
def test_what_a_family_cannot_serve_it_says_in_words(name):
    for site, reason in families.get(name).unsupported.items():
        assert isinstance(site, SiteKind) and len(reason.split()) > 3


def test_a_model_without_a_family_is_told_what_a_family_file_names():
    with pytest.raises(UnsupportedModel) as caught:
        family_for(SimpleNamespace(model_type="lama"))
    message = str(caught.value)
    assert "no family file describes model type 'lama'. Did you mean 'llama'?" in message
    for part in ("decoder", "layers", "vision encoder", "placeholder ids", "grid of each image"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("model_type", families.refused())
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(model_type):
    class Config:
        pass

    config = Config()
    config.model_type = model_type
    with pytest.raises(UnsupportedModel) as caught:
        family_for(config)
    reason = families.refused()[model_type]
    assert str(caught.value) == f"model type '{model_type}' cannot be served: {reason}"
    assert "\n" not in reason and len(reason.split()) > 5
    assert not any(model_type in families.get(name).model_types for name in families.names())


@pytest.mark.parametrize("model_type", ["nemotron_h_omni"])
def test_hybrid_decoders_that_are_not_served_have_such_layers(model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the model")
    config = CONFIG_MAPPING[model_type]()
    assert "linear_attention" in config.get_text_config().layer_types
    with pytest.raises(UnsupportedModel, match="no family file says yet where"):
        family_for(config)


@pytest.mark.parametrize(
    ("model_type", "queries"),
    [("blip-2", 32), ("instructblip", 32), ("instructblipvideo", 32), ("kosmos-2", 64), ("kosmos-2.5", 2048)],
)
def test_the_queries_are_as_many_as_the_config_says(model_type, queries):
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    found = getattr(config, "num_query_tokens", None) or config.latent_query_num
    assert found == queries and str(queries) in families.refused()[model_type]


def test_what_is_no_config_is_refused_by_its_type():
    with pytest.raises(UnsupportedModel, match="model type 'dict'"):
        family_for({})


def test_llava_with_an_encoder_that_no_family_file_describes_is_refused():
    from transformers import CLIPVisionConfig, Dinov2Config, LlamaConfig, LlavaConfig, PixtralVisionConfig

    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    text = LlamaConfig(**small)
    with pytest.raises(
        UnsupportedModel, match="LLaVA with a 'dinov2' encoder: the family files cover CLIP, SigLIP and Pixtral"
    ):
        family_for(LlavaConfig(vision_config=Dinov2Config(**small), text_config=text))
    assert family_for(LlavaConfig(vision_config=CLIPVisionConfig(**small), text_config=text)).title == "LLaVA 1.5"
    pixtral = LlavaConfig(vision_config=PixtralVisionConfig(**small), text_config=text, vision_feature_select_strategy="full")
    assert family_for(pixtral).title == "Pixtral"
    pixtral.vision_feature_select_strategy = "default"
    with pytest.raises(UnsupportedModel, match="cuts the first token, which for a Pixtral encoder is a patch"):
        family_for(pixtral)


def test_an_unknown_family_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown family 'gemma'\. Did you mean 'gemma[34]'\?"):
        families.get("gemma")


def test_families_are_found_by_file_name():
    assert all(isinstance(families.get(name), Family) for name in families.names())
    assert set(families.names()) >= {"gemma3", "llava", "qwen2_5_vl"}


@pytest.mark.parametrize("name", families.names())
def test_a_family_that_transformers_itself_cannot_run_is_refused_at_attach(name):
    if families.get(name).since > tiny.VERSION:
        pytest.skip("this transformers has the model in other parts")
    if tiny.VERSION not in families.get(name).broken_in:
        known = name in tiny.ALL_FAMILIES or families.get(name).is_text_only
        assert known or families.get(name).model_types[0] not in CONFIG_MAPPING
        return
    model, inputs = tiny.tiny_model(name), tiny.Maker(name).inputs([tiny.Row([torch.arange(5, 9)])])
    with pytest.raises(AttributeError), torch.no_grad():
        model(**inputs)  # when this passes, the family's note is out of date
    with pytest.raises(UnsupportedModel, match="itself, without any plan"):
        foveate.attach(model, "random(site=pre_llm, keep=0.5)")
