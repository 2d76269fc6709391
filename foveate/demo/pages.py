"""Pictures whose answers need resolution: pages, tables, charts of many bars, small words. Lengths are in units of 1/96 side.

A page is what its drawing needs (texts, blocks, rules) and the facts that can be asked about it, so one drawing, one labelling
and one way to ask serve all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from foveate.demo.fonts import FONTS, Box, load_font
from foveate.demo.fonts import letter_boxes as boxes_of

Colour = tuple[int, int, int]
PageKind = Literal["page", "table", "dense_chart", "small_text"]
PAGE_KINDS: tuple[PageKind, ...] = ("page", "table", "dense_chart", "small_text")

SIDE = 96.0
# Names of lines and rows; each is one token.
_KEY_LIST = (
    "total tax date rent room seat gate flight order item unit weight width height depth speed power phone floor price paid "
    "due page code stock cash change tip fee net gross rate level score age year"
)
KEYS = tuple(_KEY_LIST.split())
MOST_LINES, MOST_ROWS, MOST_COLUMNS, MOST_BARS, MOST_DENSE_VALUE = 9, 5, 4, 12, 15
MEASURED_AT = 8  # fonts measure whole pixels: a text is laid out this many times as large


@dataclass(frozen=True)
class Text:
    """A short text; `names` are the words that each of its letters belongs to, `color` the name of its ink, if it has one."""

    text: str
    ink: Colour
    rim: Colour | None
    font: str
    size: float
    left: float
    top: float
    names: tuple[str, ...]
    color: str | None = None

    def letter_boxes(self) -> list[Box]:
        """Left, top, right and bottom of each letter's ink."""
        font = load_font(self.font, self.size * MEASURED_AT)
        boxes = boxes_of(self.text, font, self.left * MEASURED_AT, self.top * MEASURED_AT)
        return [(a / MEASURED_AT, b / MEASURED_AT, c / MEASURED_AT, d / MEASURED_AT) for a, b, c, d in boxes]


@dataclass(frozen=True)
class Block:
    """A filled rectangle."""

    box: Box
    fill: Colour
    names: tuple[str, ...] = ()
    color: str | None = None


@dataclass(frozen=True)
class Fact:
    """What can be asked: the words that a phrasing is filled with, the answer, and a sentence that says it."""

    asked: tuple[str, ...]
    answer: str
    sentence: str


@dataclass(frozen=True)
class Page:
    """Texts, blocks and rules (thin lines) on paper or straight on the texture."""

    kind: PageKind
    texts: tuple[Text, ...]
    blocks: tuple[Block, ...]
    rules: tuple[Box, ...]
    rule_ink: Colour
    paper: tuple[Box, Colour] | None
    facts: tuple[Fact, ...]
    texture: str
    flips: int


def width_of(text: str, font: str, size: float) -> float:
    """Return the advance of a text."""
    return float(load_font(font, size * MEASURED_AT).getlength(text)) / MEASURED_AT


def make_page(kind: PageKind, rng: random.Random, texture: str, flips: int) -> Page:
    """Return a page of a kind; small words are made by `scenes`, which knows the colours."""
    maker = {"page": _make_lines, "table": _make_table, "dense_chart": _make_bars}[kind]
    return maker(rng, texture, flips)


def _paper(rng: random.Random) -> tuple[tuple[Box, Colour], Colour]:
    """Light paper with dark ink, or the other way round now and then."""
    low, high = rng.uniform(0, 5), rng.uniform(91, 96)
    light, dark = _grey(rng, 205, 250), _grey(rng, 5, 70)
    is_dark = rng.random() < 0.2
    return ((low, rng.uniform(0, 4), high, rng.uniform(92, 96)), dark if is_dark else light), light if is_dark else dark


def _grey(rng: random.Random, low: int, high: int) -> Colour:
    base = rng.randint(low, high)
    red, green, blue = (min(255, max(0, base + rng.randint(-14, 14))) for _ in range(3))
    return red, green, blue


def _written(key: str, case: int) -> str:
    return (key, key.capitalize(), key.upper())[case]


def _make_lines(rng: random.Random, texture: str, flips: int) -> Page:
    """Lines of a name and a number of up to three digits."""
    paper, ink = _paper(rng)
    (left, top, right, bottom), _ = paper
    count = rng.randint(4, MOST_LINES)
    font, size, case = rng.choice(FONTS), rng.uniform(4.7, 6.6), rng.randrange(3)
    keys = rng.sample(KEYS, count)
    start, stop = left + rng.uniform(3, 10), right - rng.uniform(3, 10)
    pitch = min((bottom - top - 4) / count, rng.uniform(8.2, 13))
    first = top + rng.uniform(1, max(1.0, bottom - top - 3 - pitch * count))
    is_right = rng.random() < 0.6
    gap = max(width_of(_written(key, case), font, size) for key in keys) + rng.uniform(4, 12)
    texts, rules, facts = [], [], []
    for i, key in enumerate(keys):
        y = first + i * pitch
        value = str(rng.randint(1, 999))
        number_left = stop - width_of(value, font, size) if is_right else start + gap
        texts.append(Text(_written(key, case), ink, None, font, size, start, y, (key,)))
        texts.append(Text(value, ink, None, font, size, number_left, y, (key,)))
        facts.append(Fact((key,), value, f"{key} {value}."))
    if rng.random() < 0.5:
        rules = [(start, first + i * pitch - 0.6, stop, first + i * pitch - 0.6) for i in range(count)]
    return Page("page", tuple(texts), (), tuple(rules), _mixed(ink, paper[1]), paper, tuple(facts), texture, flips)


def _make_table(rng: random.Random, texture: str, flips: int) -> Page:
    """Rows with names, columns with letters, cells with numbers of one or two digits."""
    paper, ink = _paper(rng)
    (left, top, right, bottom), _ = paper
    rows, columns = rng.randint(2, MOST_ROWS), rng.randint(2, MOST_COLUMNS)
    font, size, case = rng.choice(FONTS), rng.uniform(4.7, 6.2), rng.randrange(3)
    keys, letters = rng.sample(KEYS, rows), rng.sample("abcdefghijklmnopqrstuvwxyz", columns)
    start = left + rng.uniform(2, 4)
    inner = start + max(width_of(_written(key, case), font, size) for key in keys) + 3
    step = (right - 2 - inner) / columns
    pitch = min((bottom - top - 4) / (rows + 1), rng.uniform(9, 16))
    first = top + rng.uniform(1, max(1.0, bottom - top - 3 - pitch * (rows + 1)))
    texts, facts = [], []
    upper = rng.random() < 0.5
    for column, letter in enumerate(letters):
        shown = letter.upper() if upper else letter
        x = inner + (column + 0.5) * step - width_of(shown, font, size) / 2
        texts.append(Text(shown, ink, None, font, size, x, first, ()))
    for row, key in enumerate(keys):
        y = first + (row + 1) * pitch
        texts.append(Text(_written(key, case), ink, None, font, size, start, y, (key,)))
        for column, letter in enumerate(letters):
            value = str(rng.randint(1, 99))
            x = inner + (column + 0.5) * step - width_of(value, font, size) / 2
            texts.append(Text(value, ink, None, font, size, x, y, (key, letter)))
            facts.append(Fact((key, letter), value, f"{key} {letter} {value}."))
    rules: list[Box] = []
    if rng.random() < 0.8:
        ys = [first + i * pitch - 1.2 for i in range(1, rows + 1)]
        xs = [inner + i * step for i in range(columns)]
        rules = [(start, y, right - 2, y) for y in ys] + [(x, first, x, first + (rows + 1) * pitch - 2) for x in xs]
    return Page("table", tuple(texts), (), tuple(rules), _mixed(ink, paper[1]), paper, tuple(facts), texture, flips)


def _make_bars(rng: random.Random, texture: str, flips: int) -> Page:
    """Many narrow bars with letters below them."""
    paper, ink = _paper(rng)
    (left, _, right, _), _ = paper
    count = rng.randint(7, MOST_BARS)
    letters = rng.sample("abcdefghijklmnopqrstuvwxyz", count)
    if rng.random() < 0.5:
        letters.sort()
    font, size = rng.choice(FONTS), rng.uniform(4.7, 6.0)
    start, stop, base, unit = left + rng.uniform(3, 7), right - rng.uniform(2, 5), rng.uniform(82, 85), rng.uniform(4.6, 5.2)
    step, fill_share = (stop - start) / count, rng.uniform(0.5, 0.8)
    fills = [_ink(rng, paper[1]) for _ in range(rng.choice((1, 1, 2, 3)))]
    upper = rng.random() < 0.5
    texts, blocks, facts = [], [], []
    for i, letter in enumerate(letters):
        value, middle = rng.randint(1, MOST_DENSE_VALUE), start + (i + 0.5) * step
        shown = letter.upper() if upper else letter
        box = (middle - fill_share * step / 2, base - value * unit, middle + fill_share * step / 2, base)
        blocks.append(Block(box, fills[i % len(fills)], (letter, *sorted(set(str(value))))))
        texts.append(Text(shown, ink, None, font, size, middle - width_of(shown, font, size) / 2, base + 1.5, ()))
        facts.append(Fact((letter,), str(value), f"{letter} {value}."))
    rules: list[Box] = [(start, base, stop, base)]
    every = rng.choice((1, 5))
    rules += [(start, base - v * unit, stop, base - v * unit) for v in range(every, MOST_DENSE_VALUE + 1, every)]
    return Page(
        "dense_chart", tuple(texts), tuple(blocks), tuple(rules), _mixed(ink, paper[1]), paper, tuple(facts), texture, flips
    )


def _ink(rng: random.Random, paper: Colour) -> Colour:
    """A colour that stands out from the paper."""
    is_light = sum(paper) > 380
    red, green, blue = (rng.randint(10, 170) if is_light else rng.randint(110, 250) for _ in range(3))
    return red, green, blue


def _mixed(ink: Colour, paper: Colour) -> Colour:
    """Thin lines are paler than the text."""
    red, green, blue = ((2 * p + i) // 3 for i, p in zip(ink, paper, strict=True))
    return red, green, blue
