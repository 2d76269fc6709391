"""Pixels of a demo picture. Pictures are drawn at twice their size and reduced, which smooths the edges."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from foveate.demo.scenes import (
    COLORS,
    MAX_BAR_VALUE,
    PICTURE_PIXELS,
    VALUE_PIXELS,
    Chart,
    Picture,
    Scene,
    SceneObject,
    Word,
    load_font,
)

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.floating[Any]]

OVERSAMPLING = 2
CANVAS_PIXELS = PICTURE_PIXELS * OVERSAMPLING
TEXTURE_FAMILIES = ("flat", "gradient", "stripes", "blocks", "checker", "cloud")
INK = (15, 15, 15)


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
    elif isinstance(picture, Chart):
        _draw_chart(pen, picture)
    else:
        for word in picture.words:
            _draw_word(pen, word)
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


def _draw_word(pen: ImageDraw.ImageDraw, word: Word) -> None:
    # A thin dark rim keeps every colour readable on every texture.
    rim = (245, 245, 245) if word.color == "black" else INK
    font = load_font(word.font, word.size * OVERSAMPLING)
    place = word.left * OVERSAMPLING, word.top * OVERSAMPLING
    pen.text(place, word.text.upper(), fill=COLORS[word.color], font=font, stroke_width=1, stroke_fill=rim)
