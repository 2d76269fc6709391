"""The page of `foveate view attention` in a browser."""

from __future__ import annotations

import pytest

import foveate
from foveate.core.attention import Raters
from foveate.viz.attention_page import Heading, attention_page
from foveate.viz.parts import parts_of
from tests import tiny, traces
from tests.browser.conftest import NARROW, WIDE, Opener
from tests.browser.test_merge_page import contrast, point, shot

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def study():
    maker = tiny.Maker("llava")
    row = tiny.Row([maker.text(9), maker.picture(), maker.picture(), maker.text(20)])
    return foveate.attention(tiny.tiny_model("llava"), maker.inputs([row]), max_new_tokens=3)


def page_of(study) -> str:
    media = [(medium, parts_of(medium.shape, f"p{n}.png", [traces.picture(n)])) for n, medium in enumerate(study.layout.media)]
    return attention_page(study, media, Heading("what is it?", "a thing", "Model"))


@pytest.mark.parametrize("size", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layers_raters_and_tokens_can_be_looked_through(open_page: Opener, study, scheme, size):
    page = open_page(page_of(study), scheme, size)
    name, slider = page.locator("#layer-name"), page.locator("#layer")
    slider.focus()
    slider.press("Home")
    first = name.inner_text()
    heat = page.locator(".stage canvas").first
    shown = heat.evaluate("c => c.toDataURL()")
    slider.press("ArrowRight")
    assert name.inner_text() != first
    assert heat.evaluate("c => c.toDataURL()") != shown
    medium = study.layout.media[0]
    (part,) = parts_of(medium.shape, "p", [None])
    point(page, 0, part, 8)
    value = float(study.received(Raters.OUTPUT, medium)[1, 8])
    assert f"{100 * value:.3g}"[:4] in page.locator(".read").first.inner_text()
    page.locator("input[name=rater]").nth(1).check()
    assert heat.evaluate("c => c.toDataURL()") != shown
    for selector in ("h1", "header .soft", "#layer-name", ".read", "#bars span"):
        assert contrast(page, selector) >= 4.5, selector
    corner = shot(page)[5, 5]
    assert corner.max() < 60 if scheme == "dark" else corner.min() > 230
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
