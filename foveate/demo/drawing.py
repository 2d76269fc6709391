"""Pixels and per-patch labels of a demo picture.

Pictures are drawn at twice their size and reduced, which smooths the edges. The labels feed only the auxiliary loss
of the vision encoder; the language model never sees them.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from foveate.demo.scenes import (
    COLOR_NAMES,
    COLORS,
    GRID,
    MAX_BAR_VALUE,
    PATCH_PIXELS,
    PICTURE_PIXELS,
    SHAPES,
    SIZES,
    VALUE_PIXELS,
    Chart,
    Picture,
    Scene,
    SceneObject,
)

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Tags = npt.NDArray[np.float32]

OVERSAMPLING = 2
CANVAS_PIXELS = PICTURE_PIXELS * OVERSAMPLING
TEXTURE_FAMILIES = ("flat", "gradient", "stripes", "blocks", "checker", "cloud")
INK = (15, 15, 15)

BAR_CLASS = 1 + len(SHAPES) * len(SIZES)
BAR_TOP_CLASS = BAR_CLASS + 1
COLOR_CLASSES = 1 + len(COLOR_NAMES)
FORM_CLASSES = BAR_TOP_CLASS + 1
TAG_COUNT = len(COLOR_NAMES) * len(SHAPES) + len(COLOR_NAMES)


def render(picture: Picture) -> Image.Image:
    """Return the picture as an RGB image; the same picture always gives the same pixels."""
    canvas = Image.fromarray(_texture(picture.texture))
    if picture.flips & 1:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if picture.flips & 2:
        canvas = canvas.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pen = ImageDraw.Draw(canvas)
    if isinstance(picture, Scene):
        for item in picture.objects:
            _draw_shape(pen, item)
    else:
        _draw_chart(pen, picture)
    return canvas.reduce(OVERSAMPLING)


@lru_cache(maxsize=512)
def _texture(name: str) -> Pixels:
    """Return a muted background [canvas, canvas, 3]; the name is the seed."""
    rng = np.random.default_rng(random.Random(name).getrandbits(64))
    base = rng.uniform(70, 190) + rng.uniform(-18, 18, 3)
    pattern = _pattern(str(rng.choice(TEXTURE_FAMILIES)), rng)
    grain = rng.normal(0, rng.uniform(0, 9), (CANVAS_PIXELS, CANVAS_PIXELS))
    return np.clip(base + (pattern + grain)[..., None], 30, 225).astype(np.uint8)


def _pattern(family: str, rng: np.random.Generator) -> Field:
    side = CANVAS_PIXELS
    y, x = np.mgrid[0:side, 0:side] / side
    if family in ("gradient", "stripes"):
        angle = rng.uniform(0, 2 * math.pi)
        ramp: Field = x * math.cos(angle) + y * math.sin(angle)
        if family == "gradient":
            return ramp * float(rng.uniform(20, 70))
        waves: Field = np.sin(ramp * rng.uniform(15, 70)) * rng.uniform(6, 18)
        return waves
    if family == "blocks":
        count = int(rng.integers(4, 12))
        tiles: Field = np.kron(rng.normal(0, 12, (count, count)), np.ones((side // count + 1, side // count + 1)))
        return tiles[:side, :side]
    if family == "checker":
        count = int(rng.integers(3, 10))
        is_odd = ((x * count).astype(int) + (y * count).astype(int)) % 2
        squares: Field = is_odd * rng.uniform(8, 25)
        return squares
    if family == "cloud":
        count = int(rng.integers(4, 9))
        coarse = Image.fromarray(rng.normal(0, 18, (count, count)).astype(np.float32))
        return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.zeros((side, side))


def _draw_shape(pen: ImageDraw.ImageDraw, item: SceneObject) -> None:
    x, y, r = item.x * OVERSAMPLING, item.y * OVERSAMPLING, item.radius * OVERSAMPLING
    fill = item.shade
    if item.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(2, int(r * 0.42)))
    elif item.shape == "square":
        pen.polygon(_polygon(4, x, y, r * 1.15, math.pi / 4 + item.rotation), fill=fill)
    elif item.shape == "diamond":
        pen.polygon([(x, y - r * 1.15), (x + r * 0.7, y), (x, y + r * 1.15), (x - r * 0.7, y)], fill=fill)
    elif item.shape == "triangle":
        pen.polygon(_polygon(3, x, y + r * 0.12, r * 1.12, item.rotation), fill=fill)
    elif item.shape == "star":
        pen.polygon(_polygon(5, x, y, r * 1.15, item.rotation, inner=0.42), fill=fill)
    else:
        arm = r * 0.34
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)


def _polygon(
    corners: int, x: float, y: float, radius: float, rotation: float, inner: float | None = None
) -> list[tuple[float, float]]:
    radii = [radius] if inner is None else [radius, radius * inner]
    points = []
    for i in range(corners * len(radii)):
        angle = rotation + 2 * math.pi * i / (corners * len(radii)) - math.pi / 2
        r = radii[i % len(radii)]
        points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
    return points


def _draw_chart(pen: ImageDraw.ImageDraw, chart: Chart) -> None:
    left, right, base = (v * OVERSAMPLING for v in (chart.left, chart.right, chart.base))
    unit = VALUE_PIXELS * OVERSAMPLING
    if chart.has_gridlines:
        for value in range(1, MAX_BAR_VALUE + 1):
            height = base - value * unit
            pen.line((left, height, right, height), fill=(60, 60, 60) if value == 5 else (200, 200, 200), width=1)
    pen.line((left, base, right, base), fill=INK, width=2)
    pen.line((left, base, left, base - (MAX_BAR_VALUE + 0.3) * unit), fill=INK, width=2)
    for i, bar in enumerate(chart.bars):
        x0, y0, x1, y1 = (v * OVERSAMPLING for v in chart.box(i))
        pen.rectangle((x0, y0, x1, y1), fill=COLORS[bar.color], outline=INK)


def patch_labels(picture: Picture) -> Labels:
    """Return the colour class and the form class of every patch, [2, patches]; 0 is background."""
    labels = np.zeros((2, GRID, GRID), dtype=np.int64)
    centres = (np.arange(GRID) + 0.5) * PATCH_PIXELS
    x, y = centres[None, :], centres[:, None]
    if isinstance(picture, Scene):
        for item in picture.objects:
            # A small shape between patch centres must still label a patch.
            reach = max(item.radius, PATCH_PIXELS * 0.72)
            is_inside = (x - item.x) ** 2 + (y - item.y) ** 2 <= reach**2
            labels[0][is_inside] = 1 + COLOR_NAMES.index(item.color)
            labels[1][is_inside] = 1 + SHAPES.index(item.shape) + len(SHAPES) * SIZES.index(item.size)
    else:
        for i, bar in enumerate(picture.bars):
            x0, y0, x1, y1 = picture.box(i)
            is_inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
            labels[0][is_inside] = 1 + COLOR_NAMES.index(bar.color)
            labels[1][is_inside] = BAR_CLASS
            top = min(GRID - 1, int(y0 / PATCH_PIXELS)), min(GRID - 1, int((x0 + x1) / 2 / PATCH_PIXELS))
            labels[1][top] = BAR_TOP_CLASS
    return labels.reshape(2, -1)


def picture_tags(picture: Picture) -> Tags:
    """Return which (colour, shape) pairs and which colours are present, [tags] of 0 and 1, for the class token."""
    tags = np.zeros(TAG_COUNT, dtype=np.float32)
    pair_count = len(COLOR_NAMES) * len(SHAPES)
    if isinstance(picture, Scene):
        for item in picture.objects:
            tags[COLOR_NAMES.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)] = 1
            tags[pair_count + COLOR_NAMES.index(item.color)] = 1
    else:
        for bar in picture.bars:
            tags[pair_count + COLOR_NAMES.index(bar.color)] = 1
    return tags
