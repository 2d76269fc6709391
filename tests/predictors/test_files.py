"""Predictors on disk: what is written is read back, and what does not belong together is refused in one line."""

from __future__ import annotations

import json

import pytest
import torch

import foveate
from foveate.errors import InputError, SpecError
from foveate.predictors.files import CONFIG, IMAGE, TEXT, WEIGHTS, read_config
from foveate.spec import from_json, parse, to_json
from tests import tiny
from tests.trained import config_for, random_predictors


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("llava")


def test_what_is_written_is_read_back(model, tmp_path):
    path, modules = random_predictors(tmp_path, model)
    assert read_config(path) == config_for(model)
    with foveate.attach(model, f"dynamic_llava(path='{path}')") as attachment:
        built = attachment.modules
        assert [stage.method.name for stage in built] == ["dynamic_image", "dynamic_text"]
        for module, name in zip(built.values(), (IMAGE, TEXT), strict=True):
            for key, value in modules[name].state_dict().items():
                assert torch.equal(module.state_dict()[key], value)
            assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_recipe_takes_layer_and_rates_from_the_file(model, tmp_path):
    path, _ = random_predictors(tmp_path, model, layer=3, keep=0.4)
    assert str(parse(f"dynamic_llava(path='{path}')")) == (
        f'dynamic_image(layer=3, keep=0.4, rounding=floor, path="{path}") | dynamic_text(layer=3, path="{path}")'
    )
    chosen = parse(f"dynamic_llava(path='{path}', keep=threshold:0.5, text=off)")
    assert str(chosen) == f'dynamic_image(layer=3, keep=threshold:0.5, path="{path}")'
    assert parse(str(chosen)) == chosen and from_json(to_json(chosen)) == chosen


@pytest.mark.parametrize(
    ("keep", "patches", "kept"), [(0.1, 576, 57), (0.2, 576, 115), (0.3, 576, 172), (0.8, 576, 460), (0.2, 144, 28)]
)
def test_the_recipe_keeps_as_many_tokens_as_the_authors_program(model, tmp_path, keep, patches, kept):
    assert int(patches * keep) == kept
    path, _ = random_predictors(tmp_path, model, keep=keep)
    for words in ("", f", keep={keep}", ", rounding=floor"):
        stage = parse(f"dynamic_llava(path='{path}', text=off{words})").stages[0]
        assert stage.kept_of(patches, None) == kept
    stage = parse(f"dynamic_llava(path='{path}', text=off, rounding=half_up)").stages[0]
    assert stage.kept_of(patches, None) == int(patches * keep + 0.5)
    with pytest.raises(SpecError, match=r"dynamic_llava\(rounding=flor\) is not known. Did you mean 'floor'"):
        parse(f"dynamic_llava(path='{path}', rounding=flor)")


def test_predictors_of_another_model_are_refused(model, tmp_path):
    path, _ = random_predictors(tmp_path, tiny.tiny_model("llava", seed=7))
    with pytest.raises(InputError, match=r"whose weights are not those of this model.*allow_mismatch=on"):
        foveate.attach(model, f"dynamic_llava(path='{path}')")
    foveate.attach(model, f"dynamic_llava(path='{path}', allow_mismatch=on)").detach()


def test_the_same_model_in_another_number_format_is_the_same_model(tmp_path):
    path, _ = random_predictors(tmp_path, tiny.tiny_model("llava"))
    foveate.attach(tiny.tiny_model("llava").to(torch.bfloat16), f"dynamic_llava(path='{path}')").detach()


def test_predictors_of_another_width_are_refused_always(model, tmp_path):
    path, _ = random_predictors(tmp_path, model, hidden_size=24)
    with pytest.raises(InputError, match="hidden states of 24; this model has 32"):
        foveate.attach(model, f"dynamic_llava(path='{path}', allow_mismatch=on)")


def test_a_missing_predictor_is_named(model, tmp_path):
    path, _ = random_predictors(tmp_path, model, text_keep=None)
    with pytest.raises(InputError, match="no predictor for answers: write text=off"):
        parse(f"dynamic_llava(path='{path}')")
    with pytest.raises(InputError, match="output_text_score_predictor: it was trained without"):
        foveate.attach(model, f"dynamic_text(layer=2, path='{path}')")


def test_broken_files_are_refused_in_one_line(model, tmp_path):
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            foveate.attach(model, f"dynamic_image(layer=2, keep=0.5, path='{tmp_path}')")
        assert "\n" not in str(caught.value)

    refused("holds no predictors.json")
    random_predictors(tmp_path, model)
    good = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(good[:-9])
    refused("is not JSON")
    (tmp_path / CONFIG).write_text(json.dumps({**json.loads(good), "format": 9}))
    refused("reads predictors of format 1")
    (tmp_path / CONFIG).write_text(json.dumps({**json.loads(good), "colour": 9}))
    refused("does not describe predictors")
    (tmp_path / CONFIG).write_text(json.dumps({**json.loads(good), "width": 32}))
    refused("missing or has another shape")
    (tmp_path / CONFIG).write_text(good)
    (tmp_path / WEIGHTS).write_bytes(b"not tensors")
    refused("cannot be read")


def test_without_a_path_nothing_is_attached(model):
    with pytest.raises(SpecError, match="needs trained predictors"):
        parse("dynamic_llava()")
    with pytest.raises(InputError, match="write path=folder"):
        foveate.attach(model, "dynamic_text(layer=2)")
    with pytest.raises(InputError, match=r"holds no predictors\.json"):
        parse("dynamic_llava(path='./nowhere')")


@pytest.mark.full
def test_the_demo_model_s_own_predictors_are_a_word_away():
    from foveate.demo.evaluation import generate_answers, held_out_samples
    from foveate.demo.loading import load_demo

    demo, processor = load_demo()
    asked = [(sample, question) for sample in held_out_samples(4, 5, ("color", "caption")) for question in sample.questions]
    with foveate.attach(demo, "dynamic_llava(path=demo)") as attachment:
        answers = generate_answers(demo, processor, asked[:4], 80)
        kept = {len(entry.kept_index) for entry in attachment.trace.media}
        stored = torch.cat(attachment.trace.answer_kept)
    assert kept == {28} and 0 < float(stored.float().mean()) < 1 and all(answers)
    with pytest.raises(InputError, match="whose weights are not those of this model"):
        foveate.attach(tiny.tiny_model("llava", config=demo.config), "dynamic_llava(path=demo)")
