"""What the auxiliary losses of the training know about each patch; the language model never sees any of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from foveate.demo.fonts import Box
from foveate.demo.pages import KEYS, SIDE, Page, Text
from foveate.demo.pictures import COLOR_NAMES, LETTERS, MAX_BAR_VALUE, SHAPES, SIZES, TINY, Chart, Picture, Scene, SceneObject

Labels = npt.NDArray[np.int64]
Tags = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PLACES = ("top", "bottom", "left", "right", "center")
DIGITS = tuple(str(value) for value in range(1, MAX_BAR_VALUE + 1))
# Every word that one patch can stand for; the last ones in a detailed world only.
_PLAIN_WORDS = (*COLOR_NAMES, *SHAPES, *SIZES, *PLACES, *DIGITS, *LETTERS)
PATCH_WORDS = (*_PLAIN_WORDS, "0", TINY, *KEYS)
_WORD_INDEX = {word: i for i, word in enumerate(PATCH_WORDS)}

ALL_SIZES = (*SIZES, TINY)
BAR_CLASS = 1 + len(SHAPES) * len(ALL_SIZES)
BAR_TOP_CLASS = BAR_CLASS + 1
FIRST_LETTER_CLASS = BAR_TOP_CLASS + 1
COLOR_CLASSES = 1 + len(COLOR_NAMES)
FORM_CLASSES = FIRST_LETTER_CLASS + len(LETTERS) + 10  # letters, then digits
# Part: 0 nothing special, 1 centre of an object, then the letter's place in its word, then the bar's place in the chart.
CENTRE_PART, FIRST_LETTER_PART, FIRST_BAR_PART, PART_CLASSES = 1, 2, 6, 12
TAG_COUNT = len(COLOR_NAMES) * len(SHAPES) + len(COLOR_NAMES)

_CHARACTERS = {letter: FIRST_LETTER_CLASS + i for i, letter in enumerate(LETTERS)}
_CHARACTERS |= {str(digit): FIRST_LETTER_CLASS + len(LETTERS) + digit for digit in range(10)}


def patch_words(detailed: bool) -> tuple[str, ...]:
    """Return every word that one patch can stand for."""
    return PATCH_WORDS if detailed else _PLAIN_WORDS


class PatchLabels:
    """Labels of one picture of `grid` x `grid` patches.

    `classes` [3, patches] are colour, form and part; `words` [patches, words] is 0 or 1, in the order of `PATCH_WORDS`.
    """

    def __init__(self, picture: Picture, grid: int, detailed: bool = False) -> None:
        self._grid, self._patch, self._detailed = grid, SIDE / grid, detailed
        self._classes = np.zeros((3, grid, grid), dtype=np.int64)
        self._words = np.zeros((grid, grid, len(PATCH_WORDS)), dtype=np.float32)
        centres = (np.arange(grid) + 0.5) * self._patch
        self._x, self._y = centres[None, :], centres[:, None]
        if isinstance(picture, Scene):
            for item in picture.objects:
                self._add_object(item)
        elif isinstance(picture, Chart):
            self._add_chart(picture)
        elif isinstance(picture, Page):
            self._add_page(picture)
        else:
            for word in picture.words:
                for place, (letter, box) in enumerate(zip(word.text, word.letter_boxes(), strict=True)):
                    form = _CHARACTERS[letter]
                    self._label(self._inside(box), word.color, form, FIRST_LETTER_PART + place, (word.color, letter))

    @property
    def classes(self) -> Labels:
        return self._classes.reshape(3, -1)

    @property
    def words(self) -> Tags:
        return self._words.reshape(self._grid**2, -1)

    def _label(self, where: Mask, color: str | None, form: int, part: int, words: tuple[str, ...]) -> None:
        for row, value in enumerate((1 + COLOR_NAMES.index(color) if color else 0, form, part)):
            self._classes[row][where] = value
        self._words[where] = 0
        for word in words:
            self._words[where, _WORD_INDEX[word]] = 1

    def _add_object(self, item: SceneObject) -> None:
        # A small shape between patch centres must still label a patch.
        reach = max(item.radius, self._patch * 0.72)
        where = (self._x - item.x) ** 2 + (self._y - item.y) ** 2 <= reach**2
        form = 1 + SHAPES.index(item.shape) + len(SHAPES) * ALL_SIZES.index(item.size)
        place = (*item.cell.split(), *(item.ground.split() if self._detailed else ()))
        self._label(where, item.color, form, 0, (item.color, item.shape, item.size, *place))
        self._classes[2][self._patch_at(item.x, item.y)] = CENTRE_PART

    def _add_chart(self, chart: Chart) -> None:
        for i, bar in enumerate(chart.bars):
            box = chart.box(i)
            self._label(self._inside(box), bar.color, BAR_CLASS, FIRST_BAR_PART + i, (bar.color, str(bar.value)))
            self._classes[1][self._patch_at((box[0] + box[2]) / 2, box[1])] = BAR_TOP_CLASS

    def _add_page(self, page: Page) -> None:
        for block in page.blocks:
            self._label(self._inside(block.box), block.color, BAR_CLASS, 0, block.names)
            top = self._patch_at((block.box[0] + block.box[2]) / 2, block.box[1])
            self._classes[1][top] = BAR_TOP_CLASS
        for text in page.texts:
            self._add_text(text)

    def _add_text(self, text: Text) -> None:
        """A patch that holds several letters stands for all of them; its classes are those of the last."""
        owned = np.zeros((self._grid, self._grid), dtype=bool)
        for place, (letter, box) in enumerate(zip(text.text.lower(), text.letter_boxes(), strict=True)):
            where = self._inside(box)
            before = self._words[where & owned]
            part = min(FIRST_LETTER_PART + place, FIRST_BAR_PART - 1)
            words = (*text.names, letter, *([text.color] if text.color else ()))
            self._label(where, text.color, _CHARACTERS[letter], part, words)
            self._words[where & owned] = np.maximum(self._words[where & owned], before)
            owned |= where

    def _inside(self, box: Box) -> Mask:
        """Patches whose centre a box holds; at least the one nearest to its middle."""
        x0, y0, x1, y1 = box
        across, down = abs(self._x - (x0 + x1) / 2) <= (x1 - x0) / 2, abs(self._y - (y0 + y1) / 2) <= (y1 - y0) / 2
        where: Mask = across & down
        where[self._patch_at((x0 + x1) / 2, (y0 + y1) / 2)] = True
        return where

    def _patch_at(self, x: float, y: float) -> tuple[int, int]:
        row, column = (min(self._grid - 1, max(0, int(value / self._patch))) for value in (y, x))
        return row, column


def picture_tags(picture: Picture) -> Tags:
    """Return which (colour, shape) pairs and which colours are present, [tags] of 0 and 1, for the class token."""
    tags = np.zeros(TAG_COUNT, dtype=np.float32)
    pair_count = len(COLOR_NAMES) * len(SHAPES)
    for color in _colors(picture):
        tags[pair_count + COLOR_NAMES.index(color)] = 1
    if isinstance(picture, Scene):
        for item in picture.objects:
            tags[COLOR_NAMES.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)] = 1
    return tags


def _colors(picture: Picture) -> Iterator[str]:
    if isinstance(picture, Scene):
        yield from (item.color for item in picture.objects)
    elif isinstance(picture, Chart):
        yield from (bar.color for bar in picture.bars)
    elif isinstance(picture, Page):
        yield from (text.color for text in picture.texts if text.color)
    else:
        yield from (word.color for word in picture.words)
