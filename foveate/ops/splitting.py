"""Choosing within every n-th token at a time: greedy choices cost less than their square, and look at less."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from foveate.errors import SpecError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

MOST_PARTS = 64


def check_split(name: str, split: int) -> None:
    """Refuse a number of parts that helps nobody.

    Raises:
        SpecError: one line that names the option.
    """
    if not 1 <= split <= MOST_PARTS:
        raise SpecError(f"{name}(split={split}): a number of parts from 1 to {MOST_PARTS}")


def in_parts(points: Tensor, keep: int, split: int, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Indices [G, keep], ascending: each part, every `split`-th token, has its share of `keep`, the first parts one more.

    Parts lie between each other, so that each sees the whole picture at a lower resolution.

    Args:
        points: [G, N, ...], whose device and count are those of the tokens.
        keep: from 0 to N.
        split: parts; 1 chooses among all tokens.
        choose: given the tokens [n] of a part and its share, the places [G, share] of those it keeps.
    """
    import torch

    chosen = [torch.zeros(len(points), 0, dtype=torch.long, device=points.device)]
    for part in range(min(split, keep)):
        tokens = torch.arange(part, points.shape[1], split, device=points.device)
        chosen.append(tokens[choose(tokens, -(-(keep - part) // split))])
    return torch.cat(chosen, 1).sort(1).values
