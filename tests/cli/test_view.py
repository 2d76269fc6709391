"""foveate view: files people can open, tables, and one clear line for everything that cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from foveate import families
from foveate.cli.drawn import with_parts
from foveate.cli.media import Shown
from foveate.core.layout import Layout
from foveate.errors import InputError
from foveate.viz import packages
from tests.cli.test_run import _is_one_line
from tests.families.processors import image_processor


def attention(command, model_folder, picture, out, *more):
    return command("view", "attention", picture, picture, "what?", "--model", model_folder, "--out", str(out), *more)


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
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


def halves(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (width // 2, 0, width, height))
    return picture


def media_of(family, config, inputs, columns):
    shapes = families.get(family).media(config, inputs, {"image": columns})["image"]
    ids = torch.ones(1, columns, dtype=torch.bool)
    return Layout.build(ids, ids, [shapes]).media


def test_tiles_are_drawn_over_what_the_encoder_got_of_them():
    rules = image_processor(
        "got_ocr2", "got_ocr2", "GotOcr2ImageProcessorPil", size={"height": 24, "width": 24}, crop_to_patches=True
    )
    config, pictures = families.get("internvl").tiny_config(), [halves(96, 48), Image.new("RGB", (30, 30), (0, 255, 0))]
    pixels = rules(images=pictures, return_tensors="pt")
    tokens, placeholder = (
        families.get("internvl").tile(config).tokens,
        families.get("internvl").placeholder_ids(config)["image"],
    )
    first, second = (count * tokens for count in pixels["num_patches"].tolist())
    assert first > 2 * tokens and second == tokens
    ids = torch.tensor([[placeholder] * first + [5] + [placeholder] * second])
    inputs = {"input_ids": ids, "pixel_values": pixels["pixel_values"]}
    media = media_of("internvl", config, inputs, first + second)
    shown = [Shown(Path(name), picture) for name, picture in zip(("a.png", "b.png"), pictures, strict=True)]
    (_, cut), (_, whole) = with_parts(media, shown, inputs, SimpleNamespace(image_processor=rules))
    corners = [tuple(part.picture.getpixel((2, 2))[::2]) for part in cut]
    assert corners[0] == (255, 0) and (0, 255) in corners
    assert cut[-1].picture.getpixel((2, 12))[0] > 200 and cut[-1].picture.getpixel((21, 12))[2] > 200  # the thumbnail
    assert whole[0].picture.getpixel((2, 2)) == (0, 255, 0)
    assert [part.title for part in (cut[0], *whole)] == [f"a.png, part 1 of {len(cut)}", "b.png"]


def test_grids_that_tiles_share_are_drawn_over_the_whole_picture():
    rules = image_processor("llava_next", "llava_next", "LlavaNextImageProcessorPil")
    config, picture = families.get("llava_next").tiny_config(), halves(40, 20)
    inputs = {"image_sizes": torch.tensor([[20, 40]])}
    shape = families.get("llava_next").media(config, inputs, {"image": 1})["image"][0]
    media = media_of("llava_next", config, inputs, shape.tokens)
    shown = [Shown(Path("a.png"), picture)]
    ((_, parts),) = with_parts(media, shown, inputs, SimpleNamespace(image_processor=rules))
    assert rules.do_center_crop and len(parts) == 2
    assert all(part.picture.size == (40, 20) for part in parts)


def test_media_that_are_not_the_pictures_are_refused():
    with pytest.raises(InputError, match="0 media of 1 pictures"):
        with_parts([], [Shown(Path("a.png"), halves(4, 4))], {}, SimpleNamespace(image_processor=None))
