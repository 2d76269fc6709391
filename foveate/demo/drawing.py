"""Pixels of a demo picture, at any side. Pictures are drawn at twice their size and reduced, which smooths the edges."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from foveate.demo.fonts import load_font
from foveate.demo.pages import SIDE, Page, Text
from foveate.demo.pictures import MAX_BAR_VALUE, PHOTO, PICTURE_PIXELS, VALUE_UNITS, Chart, Picture, Scene, SceneObject, Word
from foveate.demo.textures import TEXTURE_PIXELS, photo, texture

Pixels = npt.NDArray[np.uint8]

OVERSAMPLING = 2
INK = (15, 15, 15)


def render(picture: Picture, side: int = PICTURE_PIXELS) -> Image.Image:
    """Return the picture as an RGB image of `side` x `side` pixels; the same picture always gives the same pixels."""
    canvas = Image.fromarray(_texture(picture.texture))
    if picture.flips & 1:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if picture.flips & 2:
        canvas = canvas.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    whole = side * OVERSAMPLING
    if whole != TEXTURE_PIXELS:
        canvas = canvas.resize((whole, whole), Image.Resampling.NEAREST)
    pen, scale = ImageDraw.Draw(canvas), whole / SIDE
    if isinstance(picture, Scene):
        for item in picture.objects:
            _draw_shape(pen, item, scale)
    elif isinstance(picture, Chart):
        _draw_chart(pen, picture, scale)
    elif isinstance(picture, Page):
        _draw_page(pen, picture, scale)
    else:
        for word in picture.words:
            _draw_word(pen, word, scale)
    return canvas.reduce(OVERSAMPLING)


@lru_cache(maxsize=512)
def _texture(name: str) -> Pixels:
    return photo(name) if name.split(":")[-1].startswith(PHOTO) else texture(name)


def _draw_shape(pen: ImageDraw.ImageDraw, item: SceneObject, scale: float) -> None:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
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


def _draw_chart(pen: ImageDraw.ImageDraw, chart: Chart, scale: float) -> None:
    left, right, base = (v * scale for v in (chart.left, chart.right, chart.base))
    unit, thin = VALUE_UNITS * scale, max(1, int(scale / 2))
    if chart.has_gridlines:
        for value in range(1, MAX_BAR_VALUE + 1):
            height = base - value * unit
            pen.line((left, height, right, height), fill=(60, 60, 60) if value == 5 else (200, 200, 200), width=thin)
    pen.line((left, base, right, base), fill=INK, width=2 * thin)
    pen.line((left, base, left, base - (MAX_BAR_VALUE + 0.3) * unit), fill=INK, width=2 * thin)
    for i, bar in enumerate(chart.bars):
        x0, y0, x1, y1 = (v * scale for v in chart.box(i))
        pen.rectangle((x0, y0, x1, y1), fill=bar.shade, outline=INK)


def _draw_word(pen: ImageDraw.ImageDraw, word: Word, scale: float) -> None:
    # A thin dark rim keeps every colour readable on every texture.
    rim = (245, 245, 245) if word.color == "black" else INK
    font, width = load_font(word.font, word.size * scale), max(1, int(scale / 2))
    place = word.left * scale, word.top * scale
    pen.text(place, word.text.upper(), fill=word.shade, font=font, stroke_width=width, stroke_fill=rim)


def _draw_page(pen: ImageDraw.ImageDraw, page: Page, scale: float) -> None:
    def scaled(box: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v * scale for v in box)

    if page.paper is not None:
        pen.rectangle(scaled(page.paper[0]), fill=page.paper[1])
    for rule in page.rules:
        pen.line(scaled(rule), fill=page.rule_ink, width=max(1, int(scale / 2)))
    for block in page.blocks:
        pen.rectangle(scaled(block.box), fill=block.fill)
    for text in page.texts:
        _draw_text(pen, text, scale)


def _draw_text(pen: ImageDraw.ImageDraw, text: Text, scale: float) -> None:
    font, place = load_font(text.font, text.size * scale), (text.left * scale, text.top * scale)
    if text.rim is None:
        pen.text(place, text.text, fill=text.ink, font=font)
    else:
        pen.text(place, text.text, fill=text.ink, font=font, stroke_width=max(1, int(scale / 2)), stroke_fill=text.rim)
