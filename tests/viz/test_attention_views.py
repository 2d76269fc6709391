"""Plots and pages of an attention study: sane sizes, the study's own numbers, nothing loaded from outside."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.core.attention import KINDS, Raters
from foveate.errors import MissingPackage
from foveate.viz import packages
from foveate.viz.attention_page import Heading, attention_page
from foveate.viz.attention_plot import allocation_plot, heat_map, layer_name, scale_of
from foveate.viz.kept import kept_in, kept_stages
from foveate.viz.parts import parts_of
from tests import tiny
from tests.marks import one_and_more

# A picture in tiles, one with newline tokens, one with sliding layers, one with a video.
SHOWN = ("llava", "internvl", "llava_next", "gemma3", "qwen2_5_vl")


@pytest.fixture(scope="module")
def study_of():
    known = {}

    def get(family: str):
        if family not in known:
            maker = tiny.Maker(family)
            video = family in tiny.VIDEO_FAMILIES
            pieces = [maker.text(9), maker.picture(), maker.text(3), maker.picture(kind="video" if video else "image")]
            inputs = maker.inputs([tiny.Row([*pieces, maker.text(30)])])
            known[family] = foveate.attention(tiny.tiny_model(family), inputs, max_new_tokens=4)
        return known[family]

    return get


@pytest.fixture(scope="module")
def model_of():
    models = tiny.Models()
    return lambda family: models[family, "sdpa"]


def media_of(study):
    picture = Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    return [
        (medium, parts_of(medium.shape, f"picture {number}", [picture if number else None]))
        for number, medium in enumerate(study.layout.media)
    ]


def page_of(study, question="what is $5 & <b>?"):
    return attention_page(study, media_of(study), Heading(question, "an </script> answer", "Model"))


def data_of(page: str):
    return json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])


@pytest.mark.full
@pytest.mark.parametrize("family", one_and_more(SHOWN))
def test_pictures_have_sane_sizes(study_of, family):
    study = study_of(family)
    plots = [allocation_plot(study, "a question with $ and " + 30 * "many words ")]
    plots += [heat_map(study, raters, medium, parts[-1], "why?") for medium, parts in media_of(study) for raters in Raters]
    for plot in plots:
        with Image.open(io.BytesIO(plot)) as picture:
            assert picture.format == "PNG"
            assert 600 < picture.width < 2600 and 400 < picture.height < 2600
            assert len(set(picture.convert("L").resize((50, 50)).tobytes())) > 20


@pytest.mark.full
def test_extreme_pictures_and_many_layers_still_fit(study_of):
    study = study_of("llava")
    (medium, _), _ = media_of(study)
    for size in ((20, 400), (400, 20)):
        (part,) = parts_of(medium.shape, "thin", [Image.new("RGB", size)])
        with Image.open(io.BytesIO(heat_map(study, Raters.OUTPUT, medium, part, "?"))) as picture:
            assert 600 < picture.width < 2600 and 200 < picture.height < 2600


@pytest.mark.parametrize("family", one_and_more(SHOWN))
def test_the_page_holds_the_numbers_of_the_study_exactly(study_of, family):
    study = study_of(family)
    data = data_of(page_of(study))
    assert data["layers"] == [layer_name(study, number) for number in range(len(study.layers))]
    parts = iter(data["parts"])
    for medium, drawn in media_of(study):
        for part in drawn:
            shown = next(parts)
            assert (shown["rows"], shown["columns"], shown["title"]) == (part.rows, part.columns, part.title)
            for raters in Raters:
                values = np.frombuffer(base64.b64decode(shown["values"][raters.value]), "<f4")
                expected = study.received(raters, medium)[:, part.start : part.stop].numpy()
                assert np.array_equal(values.reshape(expected.shape), expected)
    assert next(parts, None) is None
    for shown, raters in zip(data["raters"], Raters, strict=True):
        assert shown["key"] == raters.value
        assert np.allclose(shown["shares"], study.shares(raters)[:, 0].numpy())
        assert len(shown["efficiency"][0]) == len(KINDS)
        assert (shown["bottom"], shown["top"]) == scale_of(study, raters, 0)


def test_the_page_loads_nothing(study_of):
    page = page_of(study_of("llava"))
    text = re.sub(r"[A-Za-z0-9+/=]{60,}", "", page)  # base64 holds any letters
    assert not re.search(r"https?:|//[a-z]|<link|@import|url\(|fetch\(|XMLHttp|import\s", text, re.IGNORECASE)
    sources = re.findall(r'"picture": "([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "default-src 'none'" in page
    assert re.findall(r"<script[^>]*>", page) == ["<script>"]


def test_text_in_the_page_is_text(study_of):
    page = page_of(study_of("llava"))
    assert "what is $5 &amp; &lt;b&gt;?" in page
    assert "an &lt;/script&gt; answer" in page
    assert page.count("</script>") == 1
    medium, _ = media_of(study_of("llava"))[0]
    named = [parts_of(medium.shape, "</script><b>", [None])[0]]
    hostile = attention_page(study_of("llava"), [(medium, named)], Heading("q", "a", "m"))
    assert hostile.count("</script>") == 1
    assert data_of(hostile)["parts"][0]["title"] == "</script><b>"


def test_an_empty_answer_is_drawn_without_its_rater(study_of):
    maker, model = tiny.Maker("llava"), tiny.tiny_model("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    model.generation_config.eos_token_id = int(tiny.generate(model, inputs, tokens=1).sequences[0, -1])
    study = foveate.attention(model, inputs, max_new_tokens=4)
    assert [rater["key"] for rater in data_of(page_of(study))["raters"]] == ["instruction"]
    with Image.open(io.BytesIO(allocation_plot(study, "?"))) as picture:
        assert picture.height < 800


def test_tokens_outside_a_window_have_no_colour(study_of):
    study = study_of("gemma3")
    windows = [number for number, window in enumerate(study.windows) if window is not None]
    medium = study.layout.media[0]
    assert not study.received(Raters.INSTRUCTION, medium)[windows].any()
    assert all(f"(window {study.windows[number]})" in layer_name(study, number) for number in windows)
    bottom, top = scale_of(study, Raters.INSTRUCTION, 0)
    assert 0 < bottom < top <= 1


PLANS = {
    "random(site=pre_llm, keep=0.5) | fastv(layer=3, keep=0.5)": 2,
    "fastv(layer=2, keep=0.5, scope=crop)": 1,
    "fastv(layer=2, keep=0.3, effect=mask)": 1,
    "uniform(layer=2, keep=0.4)": 1,
    "pool(site=pre_llm)": 1,
    "staged(layers=[1, 2], keep=[0.5, 0.5], method=random)": 2,
    "random(layer=1, keep=100%)": 1,
}


@pytest.mark.parametrize("family", ["internvl", "llava"])
@pytest.mark.parametrize(("plan", "stages"), PLANS.items())
def test_every_plan_is_drawn_stage_by_stage_and_part_by_part(model_of, family, plan, stages):
    maker, model = tiny.Maker(family), model_of(family)
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(2), maker.text(5)])])
    with foveate.attach(model, plan) as attachment:
        tiny.generate(model, inputs, tokens=1)
        (entry,) = attachment.trace.media
    assert len(entry.kept) == stages
    parts = parts_of(entry.medium.shape, "p", [None])
    drawn = [kept_stages(entry, [part]) for part in parts]
    assert kept_stages(entry, parts).height >= sum(picture.height for picture in drawn)
    for picture, part in zip(drawn, parts, strict=True):
        side = 336 // part.columns
        panel = np.asarray(picture)[-side * part.rows :, -side * part.columns :, 0]
        middles = panel[side // 2 :: side, side // 2 :: side].flatten()
        kept = np.isin(np.arange(part.start, part.stop), entry.kept_index.numpy())
        assert np.array_equal(middles > 100, kept)
        assert kept_in(part, entry.kept_index) == np.flatnonzero(kept).tolist()


def test_a_missing_package_is_one_line_with_the_command(monkeypatch, study_of):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in ("matplotlib", "jinja2") else name)
    for draw in (lambda: allocation_plot(study_of("llava"), "?"), lambda: page_of(study_of("llava"))):
        with pytest.raises(MissingPackage, match=r"pip install foveate\[view\]"):
            draw()
    with pytest.raises(ImportError, match="matplotlib and jinja2"):
        packages.require("matplotlib", "jinja2", "PIL")
