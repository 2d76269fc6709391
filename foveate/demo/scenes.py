"""What a demo picture contains: coloured shapes on a texture, or a bar chart.

A picture is a pure function of (split, seed, index), so training can resume anywhere and the test split can never leak
into training. Nothing is drawn here; `drawing` turns a picture into pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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

PICTURE_PIXELS = 96
PATCH_PIXELS = 8
GRID = PICTURE_PIXELS // PATCH_PIXELS
VISUAL_TOKENS = GRID * GRID

MAX_OBJECTS = 9
MAX_BAR_VALUE = 9
TEXTURES_PER_SPLIT = 400
CHART_SHARE = 0.18
FEW_COLORS_SHARE = 0.6  # fewer colours or shapes in a scene make counts above one and references need two words
RADIUS_RANGE = {"small": (0.055, 0.068), "large": (0.1, 0.125)}  # fraction of the picture side
BORDER_CLEARANCE = 0.022  # centres this close to a line of the 3x3 grid would make the position ambiguous
PLACEMENT_TRIALS = 40

Split = Literal["train", "validation", "test", "vocabulary", "examples"]


@dataclass(frozen=True)
class SceneObject:
    """One shape: names for the language, numbers (in pixels and radians) for the drawing."""

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
        column = min(2, int(3 * self.x / PICTURE_PIXELS))
        row = min(2, int(3 * self.y / PICTURE_PIXELS))
        return CELLS[3 * row + column]


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


@dataclass(frozen=True)
class Chart:
    """Bars of different colours, left to right; lengths in pixels."""

    bars: tuple[Bar, ...]
    texture: str
    flips: int
    left: float
    right: float
    base: float
    bar_fill: float
    has_gridlines: bool

    def box(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of one bar, in pixels."""
        step = (self.right - self.left) / len(self.bars)
        left = self.left + step * (index + 0.5 - self.bar_fill / 2)
        return left, self.base - self.bars[index].value * VALUE_PIXELS, left + step * self.bar_fill, self.base


VALUE_PIXELS = 0.09 * PICTURE_PIXELS
Picture = Scene | Chart


def picture_random(split: Split, seed: int, index: int, purpose: str) -> random.Random:
    """Return the random source that belongs to one picture and one purpose."""
    return random.Random(f"{split}:{seed}:{index}:{purpose}")


def make_picture(split: Split, seed: int, index: int, max_objects: int = MAX_OBJECTS) -> Picture:
    """Return picture `index` of a split: a chart with probability `CHART_SHARE`, a scene otherwise."""
    rng = picture_random(split, seed, index, "picture")
    texture = f"{split}:{seed}:{rng.randrange(TEXTURES_PER_SPLIT)}"
    flips = rng.randrange(4)
    if rng.random() < CHART_SHARE:
        return _make_chart(rng, texture, flips)
    return Scene(_make_objects(rng, rng.randint(1, max_objects)), texture, flips)


def make_dense_scene(split: Split, seed: int, index: int) -> Scene:
    """Return a crowded scene: more labelled patches per picture for the vision warm-up."""
    rng = picture_random(split, seed, index, "dense")
    texture = f"{split}:{seed}:{rng.randrange(TEXTURES_PER_SPLIT)}"
    return Scene(_make_objects(rng, rng.randint(6, 14)), texture, rng.randrange(4))


def _make_objects(rng: random.Random, count: int) -> tuple[SceneObject, ...]:
    colors: Sequence[str] = COLOR_NAMES
    shapes: Sequence[str] = SHAPES
    if rng.random() < FEW_COLORS_SHARE:
        colors = rng.sample(COLOR_NAMES, rng.randint(2, 5))
    if rng.random() < FEW_COLORS_SHARE:
        shapes = rng.sample(SHAPES, rng.randint(2, 4))
    placed: list[SceneObject] = []
    for _ in range(count):
        size = rng.choice(SIZES)
        radius = rng.uniform(*RADIUS_RANGE[size]) * PICTURE_PIXELS
        centre = _free_centre(rng, radius, placed)
        if centre is None:
            continue
        color = rng.choice(colors)
        rotation = rng.uniform(-0.25, 0.25)
        placed.append(SceneObject(color, rng.choice(shapes), size, *centre, radius, rotation, _shade(rng, color)))
    return tuple(sorted(placed, key=lambda item: (CELLS.index(item.cell), item.x)))


def _free_centre(rng: random.Random, radius: float, placed: Sequence[SceneObject]) -> tuple[float, float] | None:
    side = PICTURE_PIXELS
    for _ in range(PLACEMENT_TRIALS):
        x = rng.uniform(radius + 1, side - radius - 1)
        y = rng.uniform(radius + 1, side - radius - 1)
        if min(abs(v - line) for v in (x, y) for line in (side / 3, 2 * side / 3)) < BORDER_CLEARANCE * side:
            continue
        if all(max(abs(x - other.x), abs(y - other.y)) > radius + other.radius + 1.5 for other in placed):
            return x, y
    return None


def _shade(rng: random.Random, color: str) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, max(0, channel + rng.uniform(-16, 16)))) for channel in COLORS[color])
    return red, green, blue


def _make_chart(rng: random.Random, texture: str, flips: int) -> Chart:
    colors = rng.sample(COLOR_NAMES, rng.randint(2, 6))
    side = PICTURE_PIXELS
    return Chart(
        bars=tuple(Bar(color, rng.randint(1, MAX_BAR_VALUE)) for color in colors),
        texture=texture,
        flips=flips,
        left=rng.uniform(0.06, 0.12) * side,
        right=rng.uniform(0.9, 0.96) * side,
        base=rng.uniform(0.92, 0.96) * side,
        bar_fill=rng.uniform(0.5, 0.8),
        has_gridlines=rng.random() < 0.8,
    )
