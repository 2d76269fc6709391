"""foveate view text: a gated answer in text, page and picture, and one clear line for everything that cannot work."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from foveate.api import attach
from foveate.cli import loading
from foveate.engine.cache_kinds import stored_bytes
from foveate.engine.compat import cache_in
from foveate.viz import packages
from tests.cli.test_run import _is_one_line
from tests.trained import random_predictors

GATE = "random_gate(layer=2, keep=0.5, recent=0)"


def view(command, model_folder, *arguments):
    return command("view", "text", *arguments, "--model", model_folder)


@pytest.mark.full
def test_the_demo_s_held_out_caption_is_the_default(command):
    code, out, _ = command("view", "text", "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["true_answer"].startswith("there are") and shown["plan"] == "random_gate(layer=2, keep=0.5)"
    assert shown["judged"] == len(shown["tokens"]) > 60
    assert 0.3 < shown["stored"] / shown["judged"] < 0.7
    assert sum(token["stored"] for token in shown["tokens"]) == shown["stored"]
    assert "".join(token["text"] for token in shown["tokens"]) == shown["answer"]
    assert shown["kv_bytes"]["lasting"] < shown["kv_bytes"]["held"] < shown["kv_bytes"]["without_gate"]


@pytest.mark.full
@pytest.mark.parametrize("task", ["summary", "tally", "backwards"])
def test_other_tasks_of_the_demo(command, task):
    code, out, _ = command("view", "text", "--task", task, "--json", "--plan", "stride_gate(layer=4, keep=0.5, recent=0)")
    shown = json.loads(out)
    assert code == 0
    stored = [token["stored"] for token in shown["tokens"]]
    assert stored == [number % 2 == 1 for number in range(len(stored))]


def test_text_page_picture_and_numbers_agree(command, model_folder, picture, tmp_path):
    page, png = tmp_path / "t.html", tmp_path / "t.png"
    arguments = (picture, "what?", "--plan", f"fastv(layer=2, keep=0.5) | {GATE}", "--new-tokens", "9")
    _, numbers, _ = view(command, model_folder, *arguments, "--json")
    code, out, _ = view(command, model_folder, *arguments, "--html", str(page), "--png", str(png))
    assert code == 0
    shown = json.loads(numbers)
    fates = [token["stored"] for token in shown["tokens"] if token["text"]]
    assert len(shown["tokens"]) == 9 and shown["judged"] == 8 and shown["tokens"][-1]["stored"] is None
    assert f"{shown['stored']} of 8 tokens stored" in out.replace("\n", " ")
    found = re.findall(r'<span class="(kept|gone|new)" title', page.read_text())
    assert [{"kept": True, "gone": False, "new": None}[fate] for fate in found] == fates
    assert f"wrote {page}" in out.replace("\n", "") and f"wrote {png}" in out.replace("\n", "")
    with Image.open(png) as drawn:
        assert drawn.width > 1000 and drawn.height > 150
    for run in re.findall(r"\[([^\]]+)\]", out)[:-1]:
        assert run in shown["answer"]


@pytest.mark.full
def test_bytes_without_the_gate_are_those_of_a_plan_without_it(command, model_folder, picture):
    _, out, _ = view(command, model_folder, picture, "what?", "--plan", f"fastv(layer=2, keep=0.5) | {GATE}", "--json",
                     "--new-tokens", "9")  # fmt: skip
    shown = json.loads(out)
    assert len(shown["tokens"]) == 9
    model, processor = loading.load_model(model_folder)
    with Image.open(picture) as opened:
        inputs = loading.prompt_inputs(model, processor, [opened.convert("RGB")], "what?")
    with attach(model, "fastv(layer=2, keep=0.5)"):
        answer = model.generate(**inputs, do_sample=False, max_new_tokens=9, min_new_tokens=9, return_dict_in_generate=True)
    assert shown["kv_bytes"]["without_gate"] == stored_bytes(cache_in(answer))


@pytest.mark.full
def test_a_trained_gate_is_shown_too(command, model_folder, picture, tmp_path):
    model, _ = loading.load_model(model_folder)
    folder, _ = random_predictors(tmp_path / "predictors", model)
    code, out, _ = view(command, model_folder, picture, "what?", "--plan", f'dynamic_text(layer=2, path="{folder}")', "--json",
                        "--new-tokens", "12")  # fmt: skip
    assert code == 0
    assert json.loads(out)["judged"] == 11


def test_the_text_needs_no_package_for_pictures(command, model_folder, picture, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    code, _, _ = view(command, model_folder, picture, "what?", "--new-tokens", "2")
    assert code == 0


def test_bad_input_gives_one_line_and_writes_nothing(command, model_folder, picture, tmp_path):
    out = tmp_path / "t.html"
    cases = [
        (("--plan", "fastv(layer=2, keep=0.5)"), "no stage gates decoding"),
        (("--plan", "none"), "no stage gates decoding"),
        (("--task", "poem"), "write one of caption"),
        (("--task", "tally", picture, "what?"), "brings its own picture"),
        (("--frames", "3"), "are for videos"),
        ((picture,), "no question"),
        ((picture, "what?", "--png", str(tmp_path / "no" / "t.png")), "name a file in a folder that exists"),
        ((picture, "what?", "--plan", "random_gate(layer=99, keep=0.5)"), "decoder layers"),
        ((str(tmp_path / "missing.png"), "what?"), "no picture at"),
    ]
    for arguments, says in cases:
        code, text, err = view(command, model_folder, *arguments, "--html", str(out))
        _is_one_line(code, text, err, says)
        assert not out.exists()
