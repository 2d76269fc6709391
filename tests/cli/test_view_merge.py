"""foveate view merge: a page and a picture for every plan, and one clear line for everything that cannot work."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from foveate.viz import packages
from tests.cli.test_run import _is_one_line
from tests.traces import data_of

MERGES = "partition(site=vision, layer=2, keep=0.5) | partition(layer=3, keep=0.5)"


def merge(command, model_folder, *arguments):
    return command("view", "merge", *arguments, "--model", model_folder)


def test_the_default_is_a_page_of_merges_in_this_folder(command, model_folder, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = merge(command, model_folder, picture)
    assert code == 0
    assert "wrote merge.html" in out and "86" in out and "43" in out
    assert data_of((tmp_path / "merge.html").read_text())["stages"] == [
        "partition(site=vision, layer=2, keep=0.6)",
        "partition(layer=2, keep=0.5)",
    ]


@pytest.mark.full
@pytest.mark.parametrize(
    "plan", [MERGES, "fastv(layer=2, keep=0.5)", "illava(vit_layers=1..2, vit_keep=[100, 70], llm_layers=2, llm_keep=0.7)"]
)
def test_every_plan_makes_a_page_and_a_picture(command, model_folder, picture, tmp_path, plan):
    page, png = tmp_path / "m.html", tmp_path / "m.png"
    code, out, _ = merge(
        command, model_folder, picture, picture, "--plan", plan, "--html", str(page), "--png", str(png), "--question", "why?"
    )
    assert code == 0
    assert f"wrote {page}" in out.replace("\n", "") and f"wrote {png}" in out.replace("\n", "")
    data = data_of(page.read_text())
    assert len(data["groups"]) == 2
    for group in data["groups"]:
        assert all(str(len(stage["kept"])) in out for stage in group["media"][0]["stages"])
    assert "why?" in page.read_text()
    with Image.open(png) as shown:
        assert shown.width > 300 * (len(data["stages"]) + 1) and shown.height > 2 * 300


def test_only_a_picture_is_written_when_only_that_is_asked_for(command, model_folder, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)  # a picture needs no jinja2
    code, _, _ = merge(command, model_folder, picture, "--png", "m.png", "--plan", "fastv(layer=2, keep=0.5)")
    assert code == 0
    assert (tmp_path / "m.png").is_file() and not (tmp_path / "merge.html").exists()


def test_a_video_is_a_strip(command, model_folder, picture, clip, tmp_path):
    page, png = tmp_path / "m.html", tmp_path / "m.png"
    code, out, _ = merge(
        command, model_folder, clip, picture, "--frames", "3", "--html", str(page), "--png", str(png), "--plan", MERGES
    )
    assert code == 0
    assert "clip.mp4, 3 frames" in out and "432" in out
    film, single = data_of(page.read_text())["groups"]
    assert (film["film"], single["film"]) == ("clip.mp4", None)
    assert [medium["parts"][0]["caption"] for medium in film["media"]] == [
        "frame 1 of 3, 0.0 s",
        "frame 2 of 3, 1.0 s",
        "frame 3 of 3, 1.8 s",
    ]
    with Image.open(png) as shown:
        assert shown.width > 3 * 240 and shown.height > 3 * 240 + 336


@pytest.mark.full
def test_bad_input_gives_one_line_and_writes_nothing(command, model_folder, picture, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for arguments, says in [
        ((), "no picture"),
        ((str(tmp_path / "missing.png"),), "no picture at"),
        ((str(tmp_path / "missing.mp4"),), "no video at"),
        ((picture, "--html", picture), "what is read"),
        ((picture, "--html", "x.html", "--png", "x.html"), "the same file"),
        ((picture, "--plan", "none"), "nothing to draw"),
        ((picture, "--plan", "fatsv(layer=2, keep=.5)"), "Did you mean"),
        ((picture, "--plan", "partition(site=vision, layer=99, keep=.5)"), "write layer=0..3"),
        ((picture, "--html", str(tmp_path)), "name a file"),
        ((picture, "--png", str(tmp_path / "no" / "m.png")), "in a folder that exists"),
    ]:
        code, out, err = merge(command, model_folder, *arguments)
        _is_one_line(code, out, err, says)
    code, out, err = command("view", "merge", picture, "--model", "nothing")
    _is_one_line(code, out, err, "no model at")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    code, out, err = merge(command, model_folder, picture)
    _is_one_line(code, out, err, "pip install foveate[view]")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_cannot_be_written_gives_one_line(command, model_folder, picture, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    code, out, err = merge(command, model_folder, picture, "--html", str(tmp_path / "m.html"))
    _is_one_line(code, out, err, "cannot write")
    assert "Permission denied" in err
