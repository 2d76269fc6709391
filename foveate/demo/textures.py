"""Backgrounds: muted patterns, and fields of noise and colour that look like photographs out of focus."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.floating[Any]]

TEXTURE_PIXELS = 192  # side; larger pictures repeat pixels, so that all sizes show the same
TEXTURE_FAMILIES = ("flat", "gradient", "stripes", "blocks", "checker", "cloud")
PHOTO_FAMILIES = ("landscape", "foliage", "stone", "lights")


def texture(name: str) -> Pixels:
    """Return a muted background [side, side, 3]; the name is the seed."""
    rng = _generator(name)
    base = rng.uniform(70, 190) + rng.uniform(-18, 18, 3)
    pattern = _pattern(str(rng.choice(TEXTURE_FAMILIES)), rng)
    grain = rng.normal(0, rng.uniform(0, 9), (TEXTURE_PIXELS, TEXTURE_PIXELS))
    return _pixels(base + (pattern + grain)[..., None])


def photo(name: str) -> Pixels:
    """Return a background [side, side, 3] with the spectrum and the soft colours of a photograph; the name is the seed."""
    rng = _generator(name)
    family = str(rng.choice(PHOTO_FAMILIES))
    near, far = _muted(rng), _muted(rng)
    if family == "landscape":
        picture = _landscape(rng, near, far)
    elif family == "lights":
        picture = _lights(rng, near)
    else:
        slope = rng.uniform(0.7, 1.1) if family == "foliage" else rng.uniform(1.2, 1.8)
        stretch = 1.0 if family == "foliage" else float(rng.uniform(0.1, 1.0))
        mixed = 1 / (1 + np.exp(-rng.uniform(1, 3) * _noise(rng, slope, stretch)))[..., None]
        picture = near * mixed + far * (1 - mixed)
    grain = rng.normal(0, rng.uniform(0, 6), (TEXTURE_PIXELS, TEXTURE_PIXELS))
    return _pixels(picture + grain[..., None])


def _pixels(picture: Field) -> Pixels:
    # Neither black nor white, which objects may be.
    return np.clip(picture, 30, 225).astype(np.uint8)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(random.Random(name).getrandbits(64))


def _muted(rng: np.random.Generator) -> Field:
    return np.asarray(rng.uniform(60, 190) + rng.uniform(-32, 32, 3))


def _noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> Field:
    """A field of variance 1 whose amplitude falls with the frequency to the power of `slope`, as in photographs."""
    side = TEXTURE_PIXELS
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None] / stretch)
    frequency[0, 0] = np.inf
    phases = np.exp(2j * math.pi * rng.random(frequency.shape))
    field: Field = np.fft.irfft2(frequency**-slope * phases, s=(side, side))
    return field / float(field.std())


def _landscape(rng: np.random.Generator, ground: Field, sky: Field) -> Field:
    side = TEXTURE_PIXELS
    ridge = rng.uniform(0.3, 0.7) * side + _noise(rng, 1.6)[0] * rng.uniform(2, 14)
    height = np.arange(side)[:, None]
    is_ground = 1 / (1 + np.exp(-np.clip((height - ridge[None]) / rng.uniform(0.5, 2), -40, 40)))[..., None]
    haze = (height / side * rng.uniform(-30, 50))[..., None]
    clouds, soil = _noise(rng, 1.7)[..., None] * rng.uniform(4, 16), _noise(rng, 1.0)[..., None] * rng.uniform(8, 22)
    picture: Field = (sky + haze + clouds) * (1 - is_ground) + (ground + soil) * is_ground
    return picture


def _lights(rng: np.random.Generator, base: Field) -> Field:
    """Soft discs on a dark gradient."""
    side = TEXTURE_PIXELS
    y, x = np.mgrid[0:side, 0:side]
    picture: Field = base * 0.7 + _noise(rng, 1.8)[..., None] * 8
    for _ in range(int(rng.integers(6, 18))):
        distance = np.hypot(y - rng.uniform(0, side), x - rng.uniform(0, side)) - rng.uniform(8, 34)
        disc = 1 / (1 + np.exp(np.clip(distance / rng.uniform(1.5, 5), -40, 40)))
        picture = picture + disc[..., None] * (_muted(rng) - base) * rng.uniform(0.2, 0.6)
    return picture


def _pattern(family: str, rng: np.random.Generator) -> Field:
    side = TEXTURE_PIXELS
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
