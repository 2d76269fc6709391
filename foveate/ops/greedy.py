"""Choosing tokens one after the other: far from what is chosen, of a large determinant, or covering the others.

All groups at once; sums in fp32; of equal candidates the earlier token is chosen. Every loop takes exactly `keep` steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# What differs by less is equal: two tokens are as far from each other, and rounding says otherwise in company than alone.
ROUNDING = 1e-6
# Rows of a similarity table that are held at once.
ROWS_AT_ONCE = 128


def unit_rows(states: Tensor) -> Tensor:
    """[..., D] fp32, each row divided by its length; a row of zeros stays one, and what is no number becomes one.

    Without gradient: a choice has none.
    """
    import torch

    rows: Tensor = torch.nn.functional.normalize(states.detach().float(), dim=-1).nan_to_num_(0.0)
    return rows


def largest(values: Tensor, slack: Tensor | float | None = None) -> Tensor:
    """[G, 1] long: the index of the largest of [G, N]; of those within `slack` of it the earliest, on every device.

    `slack` is a number or [G, 1]; None for a millionth of the largest.
    """
    import torch

    top = values.amax(1, keepdim=True)
    near = values >= top - (ROUNDING * top.abs() if slack is None else slack)
    count = torch.arange(values.shape[1], device=values.device)
    return torch.where(near, count, values.shape[1] - 1).amin(1, keepdim=True)


def nearest_neighbour(points: Tensor) -> Tensor:
    """[G, N] fp32: each unit vector's largest dot product with another one of [G, N, D]; -1 for a single one.

    Cost: O(N^2 D) time, O(128 N) memory per group.
    """
    import torch

    parts, count = [], points.shape[1]
    for start in range(0, count, ROWS_AT_ONCE):
        table = points[:, start : start + ROWS_AT_ONCE] @ points.transpose(1, 2)
        own = torch.arange(start, start + table.shape[1], device=points.device)[None, :, None]
        parts.append(table.scatter_(2, own.expand(len(points), -1, 1), -1.0).amax(2))
        del table  # before the next one is made
    return torch.cat(parts, 1)


def spread_out(points: Tensor, first: Tensor, keep: int, metric: str) -> Tensor:
    """Indices [G, keep] in the order of choice: each next one is farthest from the nearest of those before it.

    Args:
        points: [G, N, D] fp32.
        first: [G, 1] long, where to begin.
        metric: "cosine" for unit vectors (distance 1 - dot product), or "euclidean" (its square).

    Cost: O(keep N D) time, O(N) memory beyond the points.
    """
    import torch

    chosen, last = [first], first
    lengths = points.square().sum(2)
    slack = ROUNDING if metric == "cosine" else ROUNDING * lengths.amax(1, keepdim=True)
    distance = torch.full(points.shape[:2], torch.inf, device=points.device, dtype=torch.float32)
    for _ in range(keep - 1):
        own = points.gather(1, last[..., None].expand(-1, -1, points.shape[2]))  # [G, 1, D]
        new = 1 - (points @ own.transpose(1, 2))[..., 0] if metric == "cosine" else _squares(points, lengths, own)
        # Those that are chosen are behind all others, also where equal points have no distance left.
        distance = torch.minimum(distance, new).scatter(1, last, -torch.inf)
        last = largest(distance, slack)
        chosen.append(last)
    return torch.cat(chosen, 1)


def _squares(points: Tensor, lengths: Tensor, own: Tensor) -> Tensor:
    """[G, N] squared distances to [G, 1, D], without a difference of every point; `lengths` [G, N] are squares too."""
    product = (points @ own.transpose(1, 2))[..., 0]
    squares: Tensor = (lengths - 2 * product + own.square().sum(2)).clamp(min=0)
    return squares


def determinantal(points: Tensor, quality: Tensor, keep: int) -> Tensor:
    """Indices [G, keep] in the order of choice: each next one makes the determinant of the chosen kernel largest.

    The kernel is quality_i <x_i, x_j> quality_j. Chen et al., NeurIPS 2018, Alg. 1: a Cholesky factor that grows by a row.
    Where no token adds anything (all that is left are combinations of those chosen), the best quality is next.

    Args:
        points: [G, N, D] fp32 unit vectors, or zeros.
        quality: [G, N] fp32, positive.

    Cost: O(keep N (D + keep)) time, O(keep N) memory per group.
    """
    import torch

    groups, count, width = points.shape
    gain = quality.square() * points.any(2)  # what is left of the diagonal
    least = gain.amax(1, keepdim=True) * 1e-6  # what rounding leaves of nothing
    rows = torch.zeros(groups, keep, count, device=points.device, dtype=torch.float32)
    taken = torch.zeros(groups, count, device=points.device, dtype=torch.bool)
    chosen: list[Tensor] = []
    for step in range(keep):
        # Gains are at most what they were; below `least` they are rounding, and quality decides among negative numbers.
        score = torch.where(gain > least, gain, -1 / (1 + quality)).masked_fill(taken, -torch.inf)
        last = largest(score, least)
        chosen.append(last)
        taken = taken.scatter(1, last, True)
        own = points.gather(1, last[..., None].expand(-1, -1, width))
        kernel = quality * (points @ own.transpose(1, 2))[..., 0] * quality.gather(1, last)
        before = rows[:, :step]
        coefficient = before.gather(2, last[:, None].expand(-1, step, -1))  # [G, step, 1]
        pivot = gain.gather(1, last)
        row = (kernel - (coefficient.transpose(1, 2) @ before)[:, 0]) / pivot.clamp(min=1e-30).sqrt()
        row = torch.where(pivot > least, row, 0.0)
        rows[:, step] = row
        gain = gain - row.square()
    return torch.cat(chosen, 1)


def coverage(table: Tensor, weight: Tensor, keep: int) -> Tensor:
    """Indices [G, keep] in the order of choice: each next one adds most to what is covered, times its weight.

    A row is covered as well as by the best of the chosen candidates. Candidates bring less and less, so that on the CPU only
    those are looked at again whose last known gain could still win (lazy greedy: Minoux, 1978); an accelerator computes all
    gains anew, which costs it less than waiting would.

    Args:
        table: [G, N, R] fp32, what each candidate gives each of R rows; nothing below 0 counts.
        weight: [G, N] fp32, not negative.

    Cost: O(keep N R) time, on the CPU nearly always much less.
    """
    import torch

    if not waits(table.device):
        return torch.stack([_lazily_covered(own, each, keep) for own, each in zip(table, weight, strict=True)])
    covered = table.new_zeros(table.shape[0], 1, table.shape[2])
    taken = torch.zeros(table.shape[:2], dtype=torch.bool, device=table.device)
    chosen: list[Tensor] = []
    for _ in range(keep):
        gains = torch.stack([(own - so_far).clamp_(min=0).sum(1) for own, so_far in zip(table, covered, strict=True)])
        last = largest((weight * gains).masked_fill(taken, -torch.inf))
        chosen.append(last)
        taken = taken.scatter(1, last, True)
        covered = torch.maximum(covered, table.gather(1, last[..., None].expand(-1, -1, table.shape[2])))
    return torch.cat(chosen, 1)


def _lazily_covered(table: Tensor, weight: Tensor, keep: int) -> Tensor:
    import heapq

    import torch

    rows, weights = table.detach(), weight.tolist()
    covered, room = torch.zeros_like(rows[0]), torch.empty_like(rows[0])

    def gain(candidate: int) -> float:
        missing = torch.sub(rows[candidate], covered, out=room).clamp_(min=0)
        return float(weights[candidate]) * float(missing.sum())

    known = [(-gain(candidate), candidate) for candidate in range(len(rows))]
    heapq.heapify(known)
    chosen: list[int] = []
    while len(chosen) < keep:
        _, candidate = heapq.heappop(known)
        best = (-gain(candidate), candidate)
        if known and best > known[0]:
            heapq.heappush(known, best)
            continue
        # Others may be as good up to rounding; the earliest of them is chosen.
        equal, least = [best], -best[0] * (1 - ROUNDING)
        while known and -known[0][0] >= least:
            _, other = heapq.heappop(known)
            again = (-gain(other), other)
            if -again[0] >= least:
                equal.append(again)
            else:
                heapq.heappush(known, again)
        candidate = min(number for _, number in equal)
        for passed in equal:
            if passed[1] != candidate:
                heapq.heappush(known, passed)
        chosen.append(candidate)
        torch.maximum(covered, rows[candidate], out=covered)
    return torch.tensor(chosen)


def waits(device: torch.device) -> bool:
    """Whether reading a value of a device means to wait for it."""
    return device.type != "cpu"
