"""Commands on a plain language model: a question alone, gates as the plan, and no word about pictures that are not there."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaForCausalLM

from foveate.demo.loading import load_demo

QUESTION = "What color is the circle?"
GATE = "random_gate(layer=2, keep=0.5, recent=0)"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """The demo model's decoder with its head and tokenizer, as a model of its own."""
    folder = tmp_path_factory.mktemp("text")
    whole, processor = load_demo()
    model = LlamaForCausalLM(whole.config.get_text_config())
    weights = {name.replace("language_model.", ""): value for name, value in whole.state_dict().items()}
    model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()})
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return str(folder)


def test_run_compares_gates_on_a_question_alone(command, text_folder):
    code, out, err = command(
        "run", QUESTION, "--model", text_folder, "--plan", GATE, "--compare", "--new-tokens", "6", "--json"
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["plan"] for row in rows] == ["none", GATE, "random_gate(layer=2, keep=0.5)", "stride_gate(layer=2, keep=0.5)"]
    assert all(row["visual_tokens"] == 0 for row in rows)


def test_the_default_plan_is_a_gate(command, text_folder):
    code, out, err = command("run", QUESTION, "--model", text_folder, "--new-tokens", "3", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["plan"] == "random_gate(layer=2, keep=0.5)"


@pytest.mark.full
def test_views_of_text_and_attention_need_no_picture(command, text_folder, tmp_path):
    code, out, err = command("view", "text", QUESTION, "--model", text_folder, "--plan", GATE, "--new-tokens", "8", "--json")
    assert code == 0, err
    folder = tmp_path / "view"
    code, out, err = command(
        "view", "attention", QUESTION, "--model", text_folder, "--new-tokens", "4", "--out", str(folder), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["pictures"] == []
    assert {path.name for path in folder.iterdir()} == {"allocation.png", "attention.html", "attention.json"}


def test_the_cost_of_a_gate_is_estimated(command, text_folder):
    code, out, err = command("plan", GATE, "--model", text_folder, "--json")
    assert code == 0, err
    flops = json.loads(out)["decode_flops"]
    assert flops["plan"] < flops["plain"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "PICTURE", QUESTION), "takes no pictures"),
        (("run", QUESTION, "--plan", "fastv(layer=2, keep=0.5)"), "a plain language model's prompt has no visual tokens"),
        (("run", QUESTION, "--min-pixels", "100"), "a plain language model takes no pictures"),
        (("view", "kept", QUESTION, "--plan", "fastv(layer=2, keep=0.5)"), "no picture"),
        (("plan", GATE, "--images", "100x100"), "takes no pictures"),
    ],
)
def test_what_needs_pictures_is_refused_in_one_line(command, text_folder, picture, arguments, said):
    words = [picture if word == "PICTURE" else word for word in arguments]
    code, _, err = command(*words, "--model", text_folder)
    assert code == 2 and said in err and err.strip().count("\n") == 0, err
