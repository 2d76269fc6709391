"""What a demo picture contains: coloured shapes on a texture, a bar chart, words on a sign, or a page.

A picture is a pure function of (split, seed, index), so training can resume anywhere and the test split can never leak
into training. Nothing is drawn here; `drawing` turns a picture into pixels. Lengths are in units of 1/96 of its side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from foveate.demo.fonts import CAPITALS, FONTS, load_font
from foveate.demo.pages import SIDE, Fact, Page, Text, make_page, width_of
from foveate.demo.pictures import (
    BORDER_CLEARANCE,
    CELLS,
    CHART_SHARE,
    COLOR_NAMES,
    COLORS,
    DETAIL_SHARE,
    DETAIL_WEIGHTS,
    DIRECTIONS,
    FEW_COLORS_SHARE,
    FONT_SIZES,
    FRAMES,
    LETTERS,
    MAX_BAR_VALUE,
    MAX_OBJECTS,
    PHOTO,
    PHOTO_SHARE,
    PLACEMENT_TRIALS,
    RADIUS_RANGE,
    SHADE_SPREAD,
    SHAPES,
    SIGN_SHARE,
    SIZES,
    STEP_UNITS,
    TEXT_MARGIN,
    TEXTURES_PER_SPLIT,
    TINY,
    WORD_SHARE,
    WORDS,
    Bar,
    Chart,
    Clip,
    Picture,
    Scene,
    SceneObject,
    Sign,
    Split,
    Word,
)


def picture_random(split: Split, seed: int, index: int, purpose: str) -> random.Random:
    """Return the random source that belongs to one picture and one purpose."""
    return random.Random(f"{split}:{seed}:{index}:{purpose}")


def make_picture(
    split: Split,
    seed: int,
    index: int,
    max_objects: int = MAX_OBJECTS,
    only: Literal["chart", "sign"] | None = None,
    detailed: bool = False,
) -> Picture:
    """Return picture `index` of a split.

    A chart or a sign with the shares above, a scene otherwise, or what `only` says. In a detailed world about half of them are
    pages or scenes of tiny objects, and colours, fonts and backgrounds vary more.
    """
    rng = picture_random(split, seed, index, "picture")
    if detailed and only is None and rng.random() < DETAIL_SHARE:
        return _make_detail(split, seed, rng)
    texture, flips = _background(split, seed, rng, detailed)
    kind = rng.random()
    if only == "chart" or (only is None and kind < CHART_SHARE):
        return _make_chart(rng, texture, flips, detailed)
    if only == "sign" or (only is None and kind < CHART_SHARE + SIGN_SHARE):
        return _make_sign(rng, texture, flips, detailed)
    return Scene(_make_objects(rng, rng.randint(1, max_objects), detailed=detailed), texture, flips)


def make_pair(split: Split, seed: int, index: int, detailed: bool = False) -> tuple[Scene, Scene]:
    """Return two scenes that share their palette, for questions that compare them."""
    rng = picture_random(split, seed, index, "pair")
    colors, shapes = rng.sample(COLOR_NAMES, rng.randint(2, 4)), rng.sample(SHAPES, rng.randint(2, 3))
    scenes = [
        Scene(
            _make_objects(rng, rng.randint(1, 5), colors, shapes, detailed=detailed), *_background(split, seed, rng, detailed)
        )
        for _ in range(2)
    ]
    return scenes[0], scenes[1]


def make_clip(split: Split, seed: int, index: int, detailed: bool = False) -> Clip:
    """Return a clip of `FRAMES` frames; no two of its objects share colour and shape."""
    rng = picture_random(split, seed, index, "clip")
    background = _background(split, seed, rng, detailed)
    direction = rng.choice(tuple(DIRECTIONS))
    step = rng.uniform(*STEP_UNITS)
    dx, dy = (step * sign for sign in DIRECTIONS[direction])
    size = rng.choice(SIZES)
    radius = rng.uniform(*RADIUS_RANGE[size]) * SIDE
    way = (FRAMES - 1) * step
    x, y = (_start(rng, radius, way, sign) for sign in DIRECTIONS[direction])
    color = rng.choice(COLOR_NAMES)
    shape, rotation = rng.choice(SHAPES), rng.uniform(-0.25, 0.25)
    mover = SceneObject(color, shape, size, x, y, radius, rotation, _shade(rng, color, detailed))
    path = [replace(mover, x=x + i * dx, y=y + i * dy) for i in range(FRAMES)]
    others = _make_objects(rng, rng.randint(0, 3), taken=path, detailed=detailed)
    still = [item for item in others if (item.color, item.shape) != (mover.color, mover.shape)]
    return Clip(tuple(Scene((*still, moved), *background) for moved in path), mover, direction)


def _start(rng: random.Random, radius: float, way: float, sign: int) -> float:
    low, high = radius + 1, SIDE - radius - 1
    return rng.uniform(low + way * (sign < 0), high - way * (sign > 0))


def _background(split: Split, seed: int, rng: random.Random, detailed: bool) -> tuple[str, int]:
    kind = PHOTO if detailed and rng.random() < PHOTO_SHARE else ""
    return f"{split}:{seed}:{kind}{rng.randrange(TEXTURES_PER_SPLIT)}", rng.randrange(4)


def make_dense_scene(split: Split, seed: int, index: int, detailed: bool = False) -> Scene:
    """Return a crowded scene: more labelled patches per picture for the vision warm-up."""
    rng = picture_random(split, seed, index, "dense")
    texture, flips = _background(split, seed, rng, detailed)
    return Scene(_make_objects(rng, rng.randint(6, 14), detailed=detailed), texture, flips)


def _make_detail(split: Split, seed: int, rng: random.Random) -> Page | Scene:
    kind = rng.choices(list(DETAIL_WEIGHTS), list(DETAIL_WEIGHTS.values()))[0]
    texture, flips = _background(split, seed, rng, True)
    if kind == "sparse":
        large = _make_objects(rng, rng.randint(0, 2), sizes=("large",), detailed=True)
        tiny = _make_objects(rng, rng.randint(1, 5), sizes=(TINY,), taken=large, detailed=True)
        return Scene(_in_order([*large, *tiny]), texture, flips)
    if kind == "small_text":
        return _make_small_text(rng, texture, flips)
    return make_page(kind, rng, texture, flips)


def _make_small_text(rng: random.Random, texture: str, flips: int) -> Page:
    """Small words of different colours among empty space."""
    texts: list[Text] = []
    facts: list[Fact] = []
    for color in rng.sample(COLOR_NAMES, rng.randint(1, 5)):
        word = _any_word(rng)
        shown = (word, word.capitalize(), word.upper())[rng.randrange(3)]
        font, size = rng.choice(FONTS), rng.uniform(5.6, 8.5)
        width = width_of(shown, font, size)
        for _ in range(PLACEMENT_TRIALS):
            left, top = rng.uniform(2, SIDE - 2 - width), rng.uniform(1, SIDE - 2 - 1.3 * size)
            if all(
                left > other.left + width_of(other.text, other.font, other.size) + 4
                or other.left > left + width + 4
                or abs(other.top - top) > 1.3 * max(size, other.size)
                for other in texts
            ):
                rim = (245, 245, 245) if color == "black" else (15, 15, 15)
                texts.append(Text(shown, _shade(rng, color, True), rim, font, size, left, top, (), color))
                facts.append(Fact((color,), " ".join(word), f"the {color} word says {' '.join(word)}."))
                break
    return Page("small_text", tuple(texts), (), (), (0, 0, 0), None, tuple(facts), texture, flips)


def _any_word(rng: random.Random) -> str:
    return rng.choice(WORDS) if rng.random() < WORD_SHARE else "".join(rng.choices(LETTERS, k=rng.randint(2, 4)))


def _make_objects(
    rng: random.Random,
    count: int,
    colors: Sequence[str] = COLOR_NAMES,
    shapes: Sequence[str] = SHAPES,
    taken: Sequence[SceneObject] = (),
    sizes: Sequence[str] = SIZES,
    detailed: bool = False,
) -> tuple[SceneObject, ...]:
    """Return up to `count` objects that touch neither each other nor those of `taken`."""
    if rng.random() < FEW_COLORS_SHARE and len(colors) == len(COLOR_NAMES):
        colors = rng.sample(COLOR_NAMES, rng.randint(2, 5))
    if rng.random() < FEW_COLORS_SHARE and len(shapes) == len(SHAPES):
        shapes = rng.sample(SHAPES, rng.randint(2, 4))
    placed: list[SceneObject] = []
    for _ in range(count):
        size = rng.choice(sizes)
        radius = rng.uniform(*RADIUS_RANGE[size]) * SIDE
        centre = _free_centre(rng, radius, (*taken, *placed))
        if centre is None:
            continue
        color = rng.choice(colors)
        rotation = rng.uniform(-0.25, 0.25)
        placed.append(SceneObject(color, rng.choice(shapes), size, *centre, radius, rotation, _shade(rng, color, detailed)))
    return _in_order(placed)


def _in_order(objects: Sequence[SceneObject]) -> tuple[SceneObject, ...]:
    """Reading order of the cells."""
    return tuple(sorted(objects, key=lambda item: (CELLS.index(item.cell), item.x)))


def _free_centre(rng: random.Random, radius: float, placed: Sequence[SceneObject]) -> tuple[float, float] | None:
    side = SIDE
    for _ in range(PLACEMENT_TRIALS):
        x = rng.uniform(radius + 1, side - radius - 1)
        y = rng.uniform(radius + 1, side - radius - 1)
        if min(abs(v - line) for v in (x, y) for line in (side / 3, 2 * side / 3)) < BORDER_CLEARANCE * side:
            continue
        if all(max(abs(x - other.x), abs(y - other.y)) > radius + other.radius + 1.5 for other in placed):
            return x, y
    return None


def _shade(rng: random.Random, color: str, detailed: bool) -> tuple[int, int, int]:
    spread = SHADE_SPREAD[detailed]
    red, green, blue = (int(min(255, max(0, channel + rng.uniform(-spread, spread)))) for channel in COLORS[color])
    return red, green, blue


def _make_chart(rng: random.Random, texture: str, flips: int, detailed: bool) -> Chart:
    colors = rng.sample(COLOR_NAMES, rng.randint(2, 6))
    return Chart(
        bars=tuple(
            Bar(color, rng.randint(1, MAX_BAR_VALUE), _shade(rng, color, True) if detailed else COLORS[color])
            for color in colors
        ),
        texture=texture,
        flips=flips,
        left=rng.uniform(0.06, 0.12) * SIDE,
        right=rng.uniform(0.9, 0.96) * SIDE,
        base=rng.uniform(0.92, 0.96) * SIDE,
        bar_fill=rng.uniform(0.5, 0.8),
        has_gridlines=rng.random() < 0.8,
    )


def _make_sign(rng: random.Random, texture: str, flips: int, detailed: bool) -> Sign:
    count = rng.choice((1, 1, 2))
    colors = rng.sample(COLOR_NAMES, count)
    half = SIDE / count
    fonts = (*CAPITALS, *FONTS) if detailed else CAPITALS
    words = []
    for i, color in enumerate(colors):
        text = _any_word(rng)
        name, size = rng.choice(fonts), rng.randint(*FONT_SIZES[count])
        room = SIDE - 2 * TEXT_MARGIN
        while load_font(name, size).getlength(text.upper()) > room:
            size -= 1
        font = load_font(name, size)
        _, top, _, bottom = font.getbbox(text.upper())
        left = rng.uniform(TEXT_MARGIN, TEXT_MARGIN + room - font.getlength(text.upper()))
        upper = i * half + rng.uniform(TEXT_MARGIN, half - TEXT_MARGIN - (bottom - top))
        shade = _shade(rng, color, True) if detailed else COLORS[color]
        words.append(Word(text, color, name, size, left, upper - top, shade))
    return Sign(tuple(words), texture, flips)
