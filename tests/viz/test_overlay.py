"""Overlays show exactly the kept tokens."""

from __future__ import annotations

import numpy as np
from PIL import Image

from foveate.viz.overlay import KEPT_OUTLINE, kept_overlay, stack, strip


def test_kept_cells_are_bright_and_outlined_and_the_others_dim():
    picture = Image.new("RGB", (60, 60), (200, 180, 40))
    pixels = np.asarray(kept_overlay(picture, (1, 3, 3), [0, 4, 8], side=90))
    assert pixels.shape == (90, 90, 3)
    for token in range(9):
        y, x = divmod(token, 3)
        middle = tuple(pixels[y * 30 + 15, x * 30 + 15])
        corner = tuple(pixels[y * 30, x * 30])
        if token in (0, 4, 8):
            assert middle == (200, 180, 40)
            assert corner == KEPT_OUTLINE
        else:
            assert sum(middle) < 0.6 * 420
            assert corner != KEPT_OUTLINE


def test_pictures_that_are_not_square_keep_their_proportions():
    picture = Image.new("RGB", (200, 100), "white")
    overlay = kept_overlay(picture, (1, 4, 8), [], side=160)
    assert overlay.size == (160, 80)


def test_strips_and_stacks_hold_every_panel():
    panels = [("one", Image.new("RGB", (50, 40), "red")), ("two", Image.new("RGB", (50, 60), "blue"))]
    row = strip(panels)
    assert row.width >= 100
    assert row.height >= 60
    both = stack([row, row])
    assert both.height >= 2 * row.height
