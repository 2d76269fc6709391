"""foveate view: files people can open, tables, and one clear line for everything that cannot work."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from foveate.viz import packages
from tests.cli.test_run import _is_one_line


def attention(command, model_folder, picture, out, *more):
    return command("view", "attention", picture, picture, "what?", "--model", model_folder, "--out", str(out), *more)


def test_attention_prints_tables_and_writes_its_files(command, model_folder, picture, tmp_path):
    out = tmp_path / "deep" / "folder"
    code, text, _ = attention(command, model_folder, picture, out, "--new-tokens", "3")
    assert code == 0
    assert "attention of the answer's tokens" in text and "attention of the prompt's last token" in text
    names = {"attention.html", "allocation.png", "attention.json"}
    names |= {f"heat-{number}-{rater}.png" for number in (1, 2) for rater in ("output", "instruction")}
    assert {path.name for path in out.iterdir()} == names
    for path in out.glob("*.png"):
        with Image.open(path) as shown:
            assert 600 < shown.width < 2600 and 400 < shown.height < 2600
    numbers = json.loads((out / "attention.json").read_text())
    layers = numbers["layers"]
    for rater in ("output", "instruction"):
        measured = numbers["raters"][rater]
        assert len(measured["shares"]) == len(layers)
        assert all(abs(sum(shares) - 1) < 1e-5 for shares in measured["shares"])
        visual = [sum(sum(picture[number]) for picture in measured["pictures"]) for number in range(len(layers))]
        assert all(abs(total - shares[1]) < 1e-5 for total, shares in zip(visual, measured["shares"], strict=True))
    assert numbers["token_counts"][1] == sum(h * w for p in numbers["pictures"] for _, h, w in p["grids"])
    assert numbers["token_counts"][3] == 3


def test_attention_of_some_layers_as_json(command, model_folder, picture, tmp_path):
    code, text, _ = attention(
        command, model_folder, picture, tmp_path / "o", "--layers", "0, 2..3", "--new-tokens", "1", "--json"
    )
    assert code == 0
    numbers = json.loads(text)
    assert numbers["layers"] == [0, 2, 3]
    assert len(numbers["files"]) == 7


def test_kept_draws_every_stage_of_every_picture(command, model_folder, picture, tmp_path):
    plan = "random(site=pre_llm, keep=0.5) | fastv(layer=2, keep=0.5)"
    out = tmp_path / "kept"
    code, text, _ = command(
        "view", "kept", picture, picture, "what?", "--model", model_folder, "--plan", plan, "--out", str(out)
    )
    assert code == 0
    assert "144" in text and "72" in text and "36" in text
    assert {path.name for path in out.iterdir()} == {"kept-1.png", "kept-2.png"}
    with Image.open(out / "kept-1.png") as shown:
        assert 3 * 300 < shown.width < 2000 and 300 < shown.height < 800


@pytest.mark.parametrize("view", ["attention", "kept"])
def test_bad_input_gives_one_line_and_writes_nothing(command, model_folder, picture, tmp_path, view):
    out = tmp_path / "out"
    more = ("--plan", "fastv(layer=2, keep=0.5)") if view == "kept" else ()
    cases = [
        ((str(tmp_path / "missing.png"), "what?"), "no picture at"),
        ((picture,), "no question"),
        ((picture, " "), "question is empty"),
        (("what?",), "no picture"),
        ((picture, "what?", "--model", "nothing"), "no model at"),
        ((picture, "what?", "--out", picture), "is a file"),
        ((picture, "what?", "--out", f"{picture}/deeper"), "is a file"),
        ((picture, "what?", "--nonsense"), "--nonsense"),
    ]
    for arguments, says in cases:
        options = () if "--out" in arguments else ("--out", str(out))
        code, text, err = command("view", view, *arguments, *options, *more)
        _is_one_line(code, text, err, says)
        assert not out.exists()


def test_bad_layers_and_plans_give_one_line(command, model_folder, picture, tmp_path):
    out = str(tmp_path / "out")
    for layers, says in (("0,x", "--layers"), ("5..2", "--layers"), ("99", "decoder layers")):
        code, text, err = command(
            "view", "attention", picture, "what?", "--model", model_folder, "--out", out, "--layers", layers
        )
        _is_one_line(code, text, err, says)
    for plan, says in (
        ("none", "no stage"),
        ("fatsv(layer=2, keep=.5)", "Did you mean"),
        ("fastv(layer=99, keep=.5)", "layers"),
    ):
        code, text, err = command("view", "kept", picture, "what?", "--model", model_folder, "--out", out, "--plan", plan)
        _is_one_line(code, text, err, says)
    code, text, err = command("view", "kept", picture, "what?", "--model", model_folder, "--out", out)
    _is_one_line(code, text, err, "--plan")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_gives_one_line_before_any_work(command, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    code, text, err = command("view", "attention", picture, "what?", "--out", str(tmp_path / "out"))
    _is_one_line(code, text, err, "pip install foveate[view]")
    assert not (tmp_path / "out").exists()
