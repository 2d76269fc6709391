"""Density peaks: tokens with many others close by, far from any denser one, are the centres of clusters.

All groups at once, distances in pieces, nothing waits for a device; of equal tokens the earlier one is denser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from foveate.ops.greedy import ROUNDING, largest

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Rows of a table of distances that are held at once.
_ROWS_AT_ONCE = 64


def pairs_of_peaks(points: int) -> int:
    """How many pairs of points `density_peaks` holds at once, at most: a table, and what is compared with it."""
    return 2 * min(_ROWS_AT_ONCE, points) * points


def density_peaks(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` centres [G, count], ascending, and for each point the number of its centre among them [G, R].

    DPC-kNN (Du et al., Knowledge-Based Systems 2016): the density of a point is exp(-d), with d the mean squared distance per
    channel to its `count` nearest points, itself among them. Centres have the largest product of density and distance to the
    nearest denser point; for the densest one that is the largest distance of all. Logarithms of both are compared, so that no
    density vanishes. Every other point joins the nearest centre.

    Args:
        points: [G, R, D], any float dtype; what is no number counts as zero.
        count: 1 <= count <= R.

    Cost: O(R^2 D) time, O(64 R) memory per group.
    """
    import torch

    points = points.detach().float().nan_to_num(0.0, 0.0, 0.0)
    points = points - points.mean(1, keepdim=True)
    lengths = points.square().sum(2)
    slack = ROUNDING * lengths.amax(1, keepdim=True)  # [G, 1], what rounding makes of a square
    spreads, farthest = [], torch.zeros_like(slack)
    for _, squares in _tables(points, points, lengths, lengths, slack):
        farthest = torch.maximum(farthest, squares.amax((1, 2))[:, None])
        spreads.append(squares.topk(count, dim=2, largest=False).values.mean(2) / points.shape[2])
    spread, unsure = torch.cat(spreads, 1), slack / points.shape[2]
    places, nearest = torch.arange(points.shape[1], device=points.device), []
    for start, squares in _tables(points, points, lengths, lengths, slack):
        own, rows = spread[:, start : start + squares.shape[1], None], places[start : start + squares.shape[1], None]
        lead = own - spread[:, None]  # [G, rows, R], positive where the other one is denser
        sparser = (lead < -unsure[..., None]) | ((lead <= unsure[..., None]) & (places >= rows))
        nearest.append(torch.minimum(squares.masked_fill_(sparser, torch.inf).amin(2), farthest))
    score = (torch.cat(nearest, 1).log() / 2 - spread).clamp(min=-1e37)
    chosen: list[Tensor] = []
    for _ in range(count):
        chosen.append(largest(score))
        score = score.scatter(1, chosen[-1], -torch.inf)
    centres = torch.cat(chosen, 1).sort(1).values
    hosts = []
    targets = points.gather(1, centres[..., None].expand(-1, -1, points.shape[2]))
    for _, squares in _tables(points, targets, lengths, lengths.gather(1, centres), slack):
        near = squares <= squares.amin(2, keepdim=True) + slack[..., None]
        hosts.append(torch.where(near, places[:count], count - 1).amin(2))
    return centres, torch.cat(hosts, 1).scatter(1, centres, places[:count].expand_as(centres))


def _tables(
    points: Tensor, others: Tensor, lengths: Tensor, other_lengths: Tensor, slack: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Squared distances [G, rows, M] of some points to the others, and the first point's place; what rounding is, is zero."""
    for start in range(0, points.shape[1], _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        squares = (points[:, rows] @ others.transpose(1, 2)).mul_(-2)
        squares += lengths[:, rows, None]
        squares += other_lengths[:, None]
        yield start, squares.masked_fill_(squares <= slack[..., None], 0.0)
        del squares  # before the next one is made
