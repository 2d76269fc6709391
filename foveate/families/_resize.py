"""The resize rule of packed encoders: sides become multiples of a unit, the pixels of all frames stay within bounds."""

from __future__ import annotations

import math

from foveate.errors import InputError

# Above this the processors refuse.
_MAX_ASPECT = 200


def resized(
    size: tuple[int, int],
    unit: int,
    pixels: tuple[int, int],
    frames: int = 1,
    together: int = 1,
    enlarges_thin: bool = False,
) -> tuple[int, int]:
    """(height, width) in pixels after the resize of an image or of a video's frames.

    Args:
        size: (width, height) in pixels.
        unit: the sides become multiples of it.
        pixels: least and most pixels of all frames together.
        frames, together: frames of the medium, and how many of them the encoder takes as one.
        enlarges_thin: whether a side below `unit` is brought up to it first.

    Raises:
        InputError: for a picture without pixels, or so thin that the processor refuses it.
    """
    width, height = size
    least, most = pixels
    if min(size) < 1:
        raise InputError(f"{width} x {height} pixels: both sides are at least 1")
    if enlarges_thin and min(size) < unit:
        scale = max(unit / height, unit / width)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InputError(f"{size[0]} x {size[1]} pixels: the longer side is at most {_MAX_ASPECT} times the shorter; crop it")
    high, wide = round(height / unit) * unit, round(width / unit) * unit
    volume = round(frames / together) * together * high * wide
    if volume > most:
        scale = math.sqrt(frames * height * width / most)
        high = max(unit, math.floor(height / scale / unit) * unit)
        wide = max(unit, math.floor(width / scale / unit) * unit)
    elif volume < least:
        scale = math.sqrt(least / (frames * height * width))
        high, wide = math.ceil(height * scale / unit) * unit, math.ceil(width * scale / unit) * unit
    return high, wide
