"""How a model is loaded and how it answers: the same options everywhere, refused in one line before anything is loaded."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields

import pytest
import torch
from PIL import Image

from foveate.api import Candidate, compare
from foveate.api.memory import peak_memory
from foveate.cli import doctor, evaluate_generation, loading, run, view, view_merge, view_text
from foveate.cli.settings import Decoding, ModelSettings
from foveate.errors import FoveateError
from tests.tiny import Maker, Row, tiny_model

REFUSED = {
    "--dtype float17": "Did you mean 'float16'?",
    "--dtype int8": "--dtype int8 is not known",
    "--attn flash": "Known: eager, flash_attention_2, flex_attention, sdpa.",
    "--device gpu": "write auto, cpu, cuda",
    "--device cuda:99999": "is not known",
    "--load-in-4bit --load-in-8bit": "contradict each other",
    "--load-in-4bit": "pip install bitsandbytes",
    "--load-in-8bit": "pip install bitsandbytes",
    "--min-pixels 9 --max-pixels 8": "more than --max-pixels",
    "--max-pixels 0": "--max-pixels",
    "--temperature -1": "--temperature -1",
    "--temperature nan": "--temperature nan",
    "--temperature inf": "--temperature inf",
    "--top-p 0": "--top-p 0",
    "--top-p 1.1": "at most 1",
    "--top-p nan": "--top-p nan",
    "--beams 0": "--beams",
    "--beams 65": "--beams",
    "--seed -1": "--seed",
    f"--seed {10**30}": "--seed",
    f"--max-new-tokens {10**30}": "--max-new-tokens",
}


@pytest.mark.parametrize(("words", "says"), REFUSED.items(), ids=list(REFUSED))
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_loaded(command, picture, monkeypatch, words, says):
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: pytest.fail("loaded"))
    code, out, err = command("run", picture, "what?", *words.split())
    assert code == 2 and not out
    (line,) = err.splitlines()
    assert says in line and len(line) < 300


def test_a_device_that_is_not_there_is_refused_in_one_line(command, picture):
    code, _, err = command("run", picture, "what?", "--device", "cuda:99" if torch.cuda.is_available() else "cuda")
    assert code == 2 and "write cpu, or another one" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--min-pixels", "--max-pixels"])
def test_pixel_bounds_of_a_processor_without_any_are_refused_with_what_it_takes(command, picture, option):
    code, _, err = command("run", picture, "what?", option, "5000")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{option}: " in err and "has no bounds in pixels, it brings pictures to" in err


@pytest.mark.parametrize(
    ("given", "edges"),
    [
        ({"max_pixels": 50_000}, (3_136, 50_000)),
        ({"min_pixels": 10_000}, (10_000, 1_003_520)),
        ({"max_pixels": 1_000}, (1_000, 1_000)),
        ({"min_pixels": 2_000_000}, (2_000_000, 2_000_000)),
        ({"min_pixels": 5_000, "max_pixels": 6_000}, (5_000, 6_000)),
    ],
)
def test_pixel_bounds_decide_how_many_tokens_a_picture_has(given, edges):
    from types import SimpleNamespace

    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rules = Qwen2VLImageProcessorPil()
    ModelSettings(**given).set_pixels(SimpleNamespace(image_processor=rules))
    assert (rules.size["shortest_edge"], rules.size["longest_edge"]) == edges
    _, high, wide = rules(Image.new("RGB", (800, 600)), return_tensors="pt")["image_grid_thw"][0].tolist()
    slack = (2 * 14) ** 2 * (high + wide) / 2  # sides are whole cells, so the bounds hold but for one row and one column
    assert edges[0] - slack <= high * wide * 14**2 <= edges[1] + slack


def test_a_model_is_loaded_as_the_options_say(model_folder):
    model, _ = loading.load_model(model_folder, settings=ModelSettings(dtype="bf16", attn="eager", device="cpu"))
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    model, _ = loading.load_model(None, settings=ModelSettings(attn="eager"))
    assert model.dtype == torch.float32 and model.config._attn_implementation == "eager"
    model, _ = loading.load_model(None, settings=ModelSettings(dtype="bfloat16"))
    assert model.dtype == torch.bfloat16


def test_quantized_weights_are_asked_for_by_their_own_config(monkeypatch):
    monkeypatch.setattr("foveate.cli.settings.find_spec", lambda name: object())
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **given: given)
    options = ModelSettings(load_in_4bit=True, dtype="bfloat16", device="cpu").pretrained_options()
    assert options["quantization_config"] == {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    assert options["device_map"] == {"": "cpu"}
    assert ModelSettings(load_in_8bit=True).pretrained_options()["quantization_config"] == {"load_in_8bit": True}


@pytest.mark.full
def test_drawn_answers_repeat_with_their_seed_and_differ_without(command, model_folder, picture):
    def answers(*more):
        code, out, _ = command("run", picture, "what?", "--model", model_folder, "--temperature", "3", "--json", *more)
        assert code == 0
        return [row["answer"] for row in json.loads(out)["rows"]]

    assert answers("--max-new-tokens", "12") == answers("--new-tokens", "12", "--seed", "0")
    assert answers("--max-new-tokens", "12") != answers("--max-new-tokens", "12", "--seed", "1")


def test_each_plan_of_a_comparison_draws_from_the_same_seed():
    model, make = tiny_model("llava"), Maker("llava")
    inputs = make.inputs([Row([make.text(5), make.picture(), make.text(7)])])
    state = torch.random.get_rng_state()
    how = dict(max_new_tokens=12, do_sample=True, temperature=2.0, top_k=0)
    first, second, third = compare(model, inputs, [Candidate("a", "none"), Candidate("b", "none")], seed=4, **how)
    assert torch.equal(first.new_tokens, second.new_tokens) and torch.equal(second.new_tokens, third.new_tokens)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = compare(model, inputs, "none", seed=5, **how)[0]
    assert not torch.equal(other.new_tokens, first.new_tokens)


def test_beams_answer_without_streaming(command, model_folder, picture):
    code, out, _ = command("run", picture, "what?", "--model", model_folder, "--beams", "3", "--max-new-tokens", "4")
    assert code == 0 and "144 -> 72" in out


def test_peak_memory_is_measured_and_named(command, model_folder, picture):
    _, out, _ = command("run", picture, "what?", "--model", model_folder, "--max-new-tokens", "2", "--json")
    (row,) = json.loads(out)["rows"]
    assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
    _, out, _ = command("run", picture, "what?", "--model", model_folder, "--max-new-tokens", "2")
    assert "Peak memory: by how much the process grew while answering." in " ".join(out.split())


def test_the_peak_is_that_of_the_block_alone():
    megabytes = 64
    torch.ones(4 * megabytes * 2**18)
    with peak_memory(torch.device("cpu")) as small:
        torch.ones(2**18)
    with peak_memory(torch.device("cpu")) as large:
        torch.ones(megabytes * 2**18)
    assert large.bytes is not None and small.bytes is not None
    assert small.bytes < 16 * 2**20 < 0.8 * megabytes * 2**20 < large.bytes < 2 * megabytes * 2**20


COMMANDS = {
    run.run: (ModelSettings, Decoding),
    evaluate_generation.generation: (ModelSettings, Decoding),
    doctor.doctor: (ModelSettings,),
    view.view_attention: (ModelSettings,),
    view.view_kept: (ModelSettings,),
    view_merge.view_merge: (ModelSettings,),
    view_text.view_text: (ModelSettings,),
}


@pytest.mark.parametrize(("function", "kinds"), COMMANDS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_commands_that_load_a_model_take_the_same_options(function, kinds):
    parameters = inspect.signature(function).parameters
    for field in (field for kind in kinds for field in fields(kind)):
        assert parameters[field.name].default == field.default
    assert function.__doc__ and "kwargs" not in parameters


def test_settings_are_refused_in_python_too():
    for wrong in (dict(dtype="x"), dict(attn="x"), dict(device="x"), dict(min_pixels=2, max_pixels=1)):
        with pytest.raises(FoveateError):
            ModelSettings(**wrong)


@pytest.mark.full
def test_an_evaluation_samples_and_searches_but_counts_no_gate_over_beams(command):
    code, out, err = command("eval", "generation", "--beams", "2")
    assert code == 2 and not out and "--beams: what a gate stored" in err and len(err.splitlines()) == 1
    for how in (["--beams", "2"], ["--temperature", "1", "--top-p", "0.9", "--seed", "3"]):
        plan = ["--plan", "fastv(layer=2, keep=0.5)", "--samples", "2", "--max-new-tokens", "6", "--json"]
        code, out, _ = command("eval", "generation", *plan, *how)
        assert code == 0 and len(json.loads(out)["rows"]) == 2
