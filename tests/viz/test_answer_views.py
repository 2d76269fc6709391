"""Views of a gated answer: every token once, in its fate's looks, in text, page and picture."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.errors import MissingPackage
from foveate.viz import packages
from foveate.viz.answer_page import answer_page
from foveate.viz.answer_plot import answer_plot
from foveate.viz.answer_text import AnswerHeading, AnswerText, count_line, pieces_of, wrapped

ANSWER = AnswerText(("a", " red", " <b>", " cir", "cle", "."), (True, False, True, False, True, None))
HEADING = AnswerHeading("what is $5 & <b>?", "random_gate(layer=2, keep=0.5)", "Model", "a blue </p> square", (300, 200, 400))
BYTES = "añ€\U0001f600".encode()


def test_counts_leave_out_the_token_that_was_never_judged():
    assert (ANSWER.stored, ANSWER.judged, ANSWER.text) == (3, 5, "a red <b> circle.")
    assert ANSWER.runs() == [(True, "a"), (False, " red"), (True, " <b>"), (False, " cir"), (True, "cle"), (None, ".")]
    assert AnswerText(("x", "y"), (False, False)).runs() == [(False, "xy")]
    line = count_line(ANSWER, HEADING, lambda count: f"{count:.0f} B")
    assert line == (
        "3 of 5 tokens stored after the gate; KV cache at the end 200 B (300 B until rejected slots are taken away), "
        "without the gate 400 B"
    )


def test_a_character_of_several_tokens_stands_with_its_last_one():
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    pieces = pieces_of(decode, list(BYTES))
    assert pieces == ("a", "", "ñ", "", "", "€", "", "", "", "\U0001f600")
    assert pieces_of(decode, list(BYTES[:5])) == ("a", "", "ñ", "", "\ufffd")  # the answer was cut within a character
    assert pieces_of(decode, []) == ()


def test_a_decoder_that_drops_the_first_space_gives_it_to_the_others():
    words = ["▁a", "▁big", "ger", "▁dog"]

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pieces_of(decode, range(4)) == ("a", " big", "ger", " dog")


@given(st.lists(st.text("ab \n", max_size=7), max_size=12), st.integers(1, 9))
def test_wrapping_loses_nothing_but_spaces_at_breaks(pieces, width):
    lines = wrapped(pieces, width)
    assert all(sum(len(text) for _, _, text in line) <= width for line in lines)
    shown = "".join(text for line in lines for _, _, text in line)
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", "".join(pieces))
    for line in lines:
        assert [column for _, column, _ in line] == [sum(len(t) for _, _, t in line[:at]) for at in range(len(line))]
    for number, piece in enumerate(pieces):
        own = "".join(text for line in lines for token, _, text in line if token == number)
        assert re.sub(r"\s", "", own) == re.sub(r"\s", "", piece)


def test_lines_break_between_words_and_at_line_ends():
    lines = wrapped(("one", " two", " thr", "ee\n", "four"), 9)
    assert ["".join(text for _, _, text in line) for line in lines] == ["one two", "three", "four"]
    assert lines[1] == [(2, 0, "thr"), (3, 3, "ee")]


def test_the_page_holds_every_token_once_and_nothing_from_outside():
    picture = Image.new("RGB", (40, 20), "red")
    page = answer_page(ANSWER, HEADING, "three of five", [("a <name>.png", picture)])
    tokens = re.findall(r'<span class="(kept|gone|new)" title="([^"]+)">([^<]*)</span>', page)
    assert [fate for fate, _, _ in tokens] == ["kept", "gone", "kept", "gone", "kept", "new"]
    assert "".join(text for _, _, text in tokens) == "a red &lt;b&gt; circle."
    assert tokens[1][1] == "token 2, rejected" and tokens[5][1] == "token 6, newest token, not judged"
    assert "what is $5 &amp; &lt;b&gt;?" in page and "a blue &lt;/p&gt; square" in page and "three of five" in page
    assert "a &lt;name&gt;.png" in page and page.count("data:image/jpeg;base64,") == 1
    assert not re.search(r"https?://|<script|<link", page)
    same = answer_page(ANSWER, AnswerHeading("?", "p", "m", None, None), "")
    assert "Without the plan" not in same and "<img" not in same


@pytest.mark.full
def test_the_picture_marks_stored_tokens_and_grows_with_the_answer():
    def orange(kept: bool | None) -> int:
        text = AnswerText(("word",) * 3, (kept,) * 3)
        with Image.open(io.BytesIO(answer_plot(text, HEADING, "counts"))) as shown:
            pixels = np.asarray(shown.convert("RGB")).astype(int)
        return int(((pixels[..., 0] > 245) & (pixels[..., 2] < 170)).sum())

    # 12 characters, 0.0932 x 0.24 inches each at 130 dpi: 12 x 12.1 x 31 pixels, less the letters themselves.
    assert 2500 < orange(True) < 4600
    assert orange(False) == orange(None) == 0
    heights = []
    for words in (3, 300):
        long = AnswerText((" word",) * words, (True,) * words)
        with Image.open(io.BytesIO(answer_plot(long, HEADING, "counts"))) as shown:
            heights.append(shown.height)
    assert heights[1] - heights[0] == pytest.approx(130 * 0.27 * 16, abs=2)  # 18 words of 5 characters in each of 17 lines


def test_letters_that_the_font_lacks_are_drawn_without_a_complaint():
    assert answer_plot(AnswerText(("狗", " $x$"), (True, False)), HEADING, "")


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for draw in (lambda: answer_page(ANSWER, HEADING, ""), lambda: answer_plot(ANSWER, HEADING, "")):
        with pytest.raises(MissingPackage, match=r"pip install foveate\[view\]"):
            draw()
