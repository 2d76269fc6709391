"""What the tests of selectors share: views with bad luck in them, and what a method keeps of one group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.method import TokenMethod
from foveate.core.view import TokenView
from tests.oracles.contract import random_view

# What pictures of one colour, padding and copies look like.
SPOILED: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda x: x,
    "twins": lambda x: torch.cat([x[:, :3], x[:, :3], x[:, 6:]], 1),
    "zeros": lambda x: torch.cat([x[:, :3] * 0, x[:, 3:]], 1),
    "all equal": lambda x: x[:, :1].expand_as(x).contiguous(),
    "tiny": lambda x: x * 1e-12,
    "huge": lambda x: x * 1e12,
}
KEEPS = (1, 5, 13, 23, 24)


def spoiled_view(method: TokenMethod, kind: str, seed: int = 0, grid: tuple[int, int, int] = (1, 4, 6)) -> TokenView:
    """24 tokens in each of three groups; `kind` says what is wrong with their features."""
    view = random_view(method, grid, seed)
    return replace(view, features=SPOILED[kind](view.features))


def left_of(view: TokenView, rows: Tensor) -> TokenView:
    """What a stage before left of a view: of each group the tokens [G, m], ascending."""
    return replace(
        view,
        features=view.features.gather(1, rows[..., None].expand(-1, -1, view.features.shape[2])),
        coords=view.coords.gather(1, rows[..., None].expand(-1, -1, 3)),
        sizes=view.sizes.gather(1, rows),
        grid=None,
    )


def kept_of(method: TokenMethod, view: TokenView, keep: int) -> list[list[int]]:
    """Kept tokens of each group, as plain numbers."""
    selection = method.select(view, keep)
    selection.check_shapes(view.group_count, view.token_count, keep)
    selection.check_values(view.token_count)
    return selection.kept.tolist()


def without_ties(kind: str) -> bool:
    """Whether rounding cannot decide between equal tokens."""
    return kind in ("random", "huge")
