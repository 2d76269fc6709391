"""What the auxiliary losses of the training know about each patch; the language model never sees any of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from foveate.demo.scenes import (
    COLOR_NAMES,
    GRID,
    LETTERS,
    MAX_BAR_VALUE,
    PATCH_PIXELS,
    SHAPES,
    SIZES,
    Chart,
    Picture,
    Scene,
    SceneObject,
)

Labels = npt.NDArray[np.int64]
Tags = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PLACES = ("top", "bottom", "left", "right", "center")
DIGITS = tuple(str(value) for value in range(1, MAX_BAR_VALUE + 1))
# Every word that one patch can stand for.
PATCH_WORDS = (*COLOR_NAMES, *SHAPES, *SIZES, *PLACES, *DIGITS, *LETTERS)
_WORD_INDEX = {word: i for i, word in enumerate(PATCH_WORDS)}

BAR_CLASS = 1 + len(SHAPES) * len(SIZES)
BAR_TOP_CLASS = BAR_CLASS + 1
FIRST_LETTER_CLASS = BAR_TOP_CLASS + 1
COLOR_CLASSES = 1 + len(COLOR_NAMES)
FORM_CLASSES = FIRST_LETTER_CLASS + len(LETTERS)
# Part: 0 nothing special, 1 centre of an object, then the letter's place in its word, then the bar's place in the chart.
CENTRE_PART, FIRST_LETTER_PART, FIRST_BAR_PART, PART_CLASSES = 1, 2, 6, 12
TAG_COUNT = len(COLOR_NAMES) * len(SHAPES) + len(COLOR_NAMES)

_CENTRES = (np.arange(GRID) + 0.5) * PATCH_PIXELS
_X, _Y = _CENTRES[None, :], _CENTRES[:, None]


class PatchLabels:
    """Labels of one picture: `classes` [3, patches] are colour, form and part; `words` [patches, words] is 0 or 1."""

    def __init__(self, picture: Picture) -> None:
        self._classes = np.zeros((3, GRID, GRID), dtype=np.int64)
        self._words = np.zeros((GRID, GRID, len(PATCH_WORDS)), dtype=np.float32)
        if isinstance(picture, Scene):
            for item in picture.objects:
                self._add_object(item)
        elif isinstance(picture, Chart):
            self._add_chart(picture)
        else:
            for word in picture.words:
                for place, (letter, box) in enumerate(zip(word.text, word.letter_boxes(), strict=True)):
                    form = FIRST_LETTER_CLASS + LETTERS.index(letter)
                    self._label(_inside(box), word.color, form, FIRST_LETTER_PART + place, (word.color, letter))

    @property
    def classes(self) -> Labels:
        return self._classes.reshape(3, -1)

    @property
    def words(self) -> Tags:
        return self._words.reshape(GRID * GRID, -1)

    def _label(self, where: Mask, color: str, form: int, part: int, words: tuple[str, ...]) -> None:
        for row, value in enumerate((1 + COLOR_NAMES.index(color), form, part)):
            self._classes[row][where] = value
        self._words[where] = 0
        for word in words:
            self._words[where, _WORD_INDEX[word]] = 1

    def _add_object(self, item: SceneObject) -> None:
        # A small shape between patch centres must still label a patch.
        reach = max(item.radius, PATCH_PIXELS * 0.72)
        where = (_X - item.x) ** 2 + (_Y - item.y) ** 2 <= reach**2
        form = 1 + SHAPES.index(item.shape) + len(SHAPES) * SIZES.index(item.size)
        self._label(where, item.color, form, 0, (item.color, item.shape, item.size, *item.cell.split()))
        self._classes[2][_patch_at(item.x, item.y)] = CENTRE_PART

    def _add_chart(self, chart: Chart) -> None:
        for i, bar in enumerate(chart.bars):
            box = chart.box(i)
            self._label(_inside(box), bar.color, BAR_CLASS, FIRST_BAR_PART + i, (bar.color, str(bar.value)))
            self._classes[1][_patch_at((box[0] + box[2]) / 2, box[1])] = BAR_TOP_CLASS


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
    else:
        yield from (word.color for word in picture.words)


def _inside(box: tuple[float, float, float, float]) -> Mask:
    """Patches whose centre a box holds; at least the one nearest to its middle."""
    x0, y0, x1, y1 = box
    where: Mask = (abs(_X - (x0 + x1) / 2) <= (x1 - x0) / 2) & (abs(_Y - (y0 + y1) / 2) <= (y1 - y0) / 2)
    where[_patch_at((x0 + x1) / 2, (y0 + y1) / 2)] = True
    return where


def _patch_at(x: float, y: float) -> tuple[int, int]:
    row, column = (min(GRID - 1, max(0, int(value / PATCH_PIXELS))) for value in (y, x))
    return row, column
