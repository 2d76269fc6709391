"""Where the features of a picture land: a part of it is painted over, and the token whose features change most is found."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from foveate.core.shape import MediumShape

_NOISE = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()


def painted(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A copy of the picture with noise in the box (left, top, right, bottom)."""
    copy = picture.copy()
    size = (box[2] - box[0], box[3] - box[1])
    copy.paste(Image.fromarray(_NOISE).resize(size, Image.Resampling.NEAREST), box)
    return copy


def on_grid(shape: MediumShape) -> Tensor:
    """[tokens] bool, False at separators."""
    grid = torch.ones(shape.tokens, dtype=torch.bool)
    grid[list(shape.separators)] = False
    return grid


def places(shape: MediumShape, before: Tensor, after: Tensor) -> list[tuple[int, int, int]]:
    """For each part of a medium the (t, y, x) of the token whose features [tokens, D] differ most."""
    assert len(before) == len(after) == shape.tokens
    change = (after - before).norm(dim=1)[on_grid(shape)]
    parts = change.split([t * h * w for t, h, w in shape.grids])
    found = []
    for part, (_, h, w) in zip(parts, shape.grids, strict=True):
        best = int(part.argmax())
        found.append((best // (h * w), best // w % h, best % w))
    return found
