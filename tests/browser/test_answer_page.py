"""The page of `foveate view text` in a browser."""

from __future__ import annotations

import pytest
from PIL import Image

from foveate.viz.answer_page import answer_page
from foveate.viz.answer_text import AnswerHeading, AnswerText
from tests.browser.conftest import NARROW, WIDE, Opener
from tests.browser.test_merge_page import contrast

pytestmark = pytest.mark.browser

WORDS = tuple(f" word{number}" for number in range(60))


def page_of(pieces: tuple[str, ...] = WORDS) -> str:
    answer = AnswerText(pieces, (*(number % 3 == 0 for number in range(len(pieces) - 1)), None))
    heading = AnswerHeading("what is it?", "random_gate(layer=2, keep=0.5)", "Model", "another answer", None)
    return answer_page(answer, heading, "20 of 59 tokens", [("p.png", Image.new("RGB", (80, 50), "green"))])


@pytest.mark.parametrize("size", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_answer_can_be_read_and_rejected_tokens_be_hidden(open_page: Opener, scheme, size):
    page = open_page(page_of(), scheme, size)
    assert page.locator("#answer").inner_text() == "".join(WORDS)
    for selector in ("h1", "header p", "#counts", "#answer .kept", "#answer .gone", "#answer .new", "#plain", "footer"):
        assert contrast(page, selector) >= 4.5, selector
    weights = [
        page.locator(f"#answer .{fate}").first.evaluate("e => +getComputedStyle(e).fontWeight") for fate in ("kept", "gone")
    ]
    assert weights[0] > weights[1]
    page.locator("#only").focus()
    page.keyboard.press("Space")
    assert not page.locator("#answer .gone").first.is_visible()
    assert page.locator("#answer .kept").first.is_visible() and page.locator("#answer .new").is_visible()
    assert page.locator("#plain").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_word_without_an_end_does_not_widen_a_narrow_page(open_page: Opener):
    page = open_page(page_of(("x" * 300, "y" * 300)), size=NARROW)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
