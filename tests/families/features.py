"""Where the features of a picture land: a part of it is painted over, and the token whose features change most is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def flat(output: Any) -> Tensor:
    """The features [tokens, D] of all media of a call, which transformers hands over stacked, listed or both."""
    return torch.cat([part.flatten(0, -2) for part in output.pooler_output])


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


def check_frames(shape: MediumShape, side: int, features_of: Callable[[Tensor], Tensor]) -> None:
    """Change each cell of each frame of a random video [1, t, 3, side, side]: its own token changes most."""
    generator = torch.Generator().manual_seed(0)
    frames, high, wide = shape.grid
    video = torch.randn(1, frames, 3, side, side, generator=generator)
    with torch.no_grad():
        before = features_of(video)
        for t in range(frames):
            for y in range(high):
                for x in range(wide):
                    other = video.clone()
                    rows, columns = (slice(side // n * at, side // n * (at + 1)) for n, at in ((high, y), (wide, x)))
                    region = other[0, t, :, rows, columns]
                    region += 4 * torch.randn(region.shape, generator=generator)
                    assert places(shape, before, features_of(other)) == [(t, y, x)]
