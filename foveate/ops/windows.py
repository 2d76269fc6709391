"""Choosing per spatial window."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


def window_top_indices(score: Tensor, coords: Tensor, keep: int, side: int) -> Tensor:
    """Keep the best tokens of every window in turn, until `keep` are chosen.

    Every token gets its rank within its own window; tokens are then taken by rank, and by score within a rank. So each
    window keeps its best tokens and the counts of two windows differ by at most one while both have tokens left.
    Source: Window FastV in Wen et al., arXiv 2502.11501, which takes an equal top-k per window; taking by rank meets
    counts that the number of windows does not divide.

    Args:
        score: [G, N], larger = keep.
        coords: [G, N, 3] (t, y, x).
        keep: tokens to keep per group.
        side: window side in tokens.

    Returns:
        Kept indices [G, keep], long, ascending.

    Cost: O(N log N) time and O(N) memory per group.
    """
    import torch

    count = score.shape[1]
    by_score = torch.argsort(score, dim=1, descending=True, stable=True)
    t, y, x = coords[..., 0], coords[..., 1] // side, coords[..., 2] // side
    wide, high = x.amax(dim=1, keepdim=True) + 1, y.amax(dim=1, keepdim=True) + 1
    window = ((t * high + y) * wide + x).gather(1, by_score)
    # A stable sort by window of tokens already in score order lines up each window's tokens best first.
    by_window = torch.argsort(window, dim=1, stable=True)
    lined_up = window.gather(1, by_window)
    position = torch.arange(count, device=score.device).expand_as(lined_up)
    starts = torch.ones_like(lined_up, dtype=torch.bool)
    starts[:, 1:] = lined_up[:, 1:] != lined_up[:, :-1]
    first = torch.where(starts, position, torch.zeros_like(position)).cummax(dim=1).values
    rank = torch.empty_like(position).scatter(1, by_window, position - first)
    # `rank` is in score order, so a stable sort by it is "by rank, then by score".
    chosen = torch.argsort(rank, dim=1, stable=True)[:, :keep]
    return by_score.gather(1, chosen).sort(dim=1).values
