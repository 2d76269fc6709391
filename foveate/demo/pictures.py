"""What demo pictures are made of: names, sizes and the parts of a picture. Lengths are in units of 1/96 of its side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveate.demo.fonts import Box, letter_boxes, load_font
from foveate.demo.pages import SIDE, Page, PageKind

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 60, 230),
    "yellow": (245, 225, 40),
    "purple": (150, 40, 190),
    "orange": (250, 140, 20),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
COLOR_NAMES = tuple(COLORS)
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring")
SIZES = ("small", "large")
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

TINY = "tiny"  # the size of what is lost first when a picture is shrunk; `SIZES` are those of ordinary scenes
GROUND_COLUMNS = "abcdefgh"  # of the 8 x 8 cells that a place can be named by

PICTURE_PIXELS = 96  # side of a drawn picture, unless told otherwise
PATCH_PIXELS = 8

MAX_OBJECTS = 10
MAX_BAR_VALUE = 9
TEXTURES_PER_SPLIT = 400
CHART_SHARE = 0.18
SIGN_SHARE = 0.2
FEW_COLORS_SHARE = 0.6  # fewer colours or shapes in a scene make counts above one and references need two words
RADIUS_RANGE = {"small": (0.055, 0.068), "large": (0.1, 0.125), TINY: (0.019, 0.027)}  # fraction of the picture side
# Of the pictures of a detailed world.
DETAIL_SHARE = 0.48
DETAIL_WEIGHTS: dict[PageKind | Literal["sparse"], float] = {
    "page": 3,
    "table": 2.2,
    "dense_chart": 2,
    "small_text": 2,
    "sparse": 2,
}
PHOTO_SHARE, PHOTO = 0.4, "photo"  # backgrounds that look like one, and how their names begin
SHADE_SPREAD = {False: 16, True: 28}  # of a channel, by whether the world is detailed
BORDER_CLEARANCE = 0.022  # centres this close to a line of the 3x3 grid would make the position ambiguous
PLACEMENT_TRIALS = 40

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORD_LIST = (
    "ant ape arm art bag bat bed bee big box boy bug bus cab can cap car cat cow cup day dog dot ear egg eye fan fig fit "
    "fly fog fox fun gas gem gum hat hen hot ice ink jam jar jet job joy key kid kit leg lip log map mud net nut oak oil "
    "old one owl pan pen pet pie pig pin pot rat red rug run sea sky son sun tap tea ten toe top toy van wax web wig win "
    "yes zip zoo back ball bank bear bell bike bird blue boat bone book cake card city clay club coat coin cold corn desk "
    "dish door drum duck east exit face farm fast fire fish flag food foot frog game gate gold hand help hill home iron "
    "jazz jump kite lake lamp leaf lion milk moon nest open park quiz rain ring road rock rose salt ship shop snow soap "
    "star stop taxi tent time tree vase wave west wind wolf wood yard zero zone am at by do go hi in it me my no of on or "
    "so to up us we "
)
WORDS = tuple(_WORD_LIST.split())
WORD_SHARE = 0.5  # of the signs that read a real word; the others read letters that spell nothing
FONT_SIZES = {1: (20, 34), 2: (18, 25)}  # pixels, by the number of words
TEXT_MARGIN = 4

FRAMES = 4
STEP_UNITS = (9.0, 14.0)  # how far the moving object of a clip goes between frames
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

Split = Literal["train", "validation", "test", "vocabulary", "examples"]


@dataclass(frozen=True)
class SceneObject:
    """One shape: names for the language, numbers (in units and radians) for the drawing."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float
    shade: tuple[int, int, int]

    @property
    def cell(self) -> str:
        """Name of the cell of the 3x3 grid that holds the centre."""
        column = min(2, int(3 * self.x / SIDE))
        row = min(2, int(3 * self.y / SIDE))
        return CELLS[3 * row + column]

    @property
    def ground(self) -> str:
        """Letter and number of the cell of the 8x8 grid that holds the centre, such as "c 5"."""
        column, row = (min(7, int(8 * v / SIDE)) for v in (self.x, self.y))
        return f"{GROUND_COLUMNS[column]} {row + 1}"


@dataclass(frozen=True)
class Scene:
    """Shapes on a texture, in reading order of their cells."""

    objects: tuple[SceneObject, ...]
    texture: str
    flips: int


@dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    color: str
    value: int
    shade: tuple[int, int, int]


@dataclass(frozen=True)
class Chart:
    """Bars of different colours, left to right."""

    bars: tuple[Bar, ...]
    texture: str
    flips: int
    left: float
    right: float
    base: float
    bar_fill: float
    has_gridlines: bool

    def box(self, index: int) -> Box:
        """Left, top, right and bottom of one bar."""
        step = (self.right - self.left) / len(self.bars)
        left = self.left + step * (index + 0.5 - self.bar_fill / 2)
        return left, self.base - self.bars[index].value * VALUE_UNITS, left + step * self.bar_fill, self.base


@dataclass(frozen=True)
class Word:
    """One written word in capitals; `left` and `top` of its letters and the font size."""

    text: str
    color: str
    font: str
    size: int
    left: float
    top: float
    shade: tuple[int, int, int]

    def letter_boxes(self) -> list[Box]:
        """Left, top, right and bottom of each letter's ink."""
        return letter_boxes(self.text.upper(), load_font(self.font, self.size), self.left, self.top)


@dataclass(frozen=True)
class Sign:
    """One or two words, the upper one first."""

    words: tuple[Word, ...]
    texture: str
    flips: int


VALUE_UNITS = 0.09 * SIDE
Picture = Scene | Chart | Sign | Page


@dataclass(frozen=True)
class Clip:
    """A short video: one object of a scene moves straight on, the others stay.

    Attributes:
        frames: the scenes, first to last.
        mover: the moving object, as in the first frame.
        direction: a key of `DIRECTIONS`.
    """

    frames: tuple[Scene, ...]
    mover: SceneObject
    direction: str
