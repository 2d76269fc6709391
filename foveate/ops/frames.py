"""Tokens of a video, frame after frame: which one stood at the same place before, and how far it moved since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveate.ops.greedy import unit_rows
from foveate.ops.merging import take_rows

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Beyond any frame's side and any video's length.
_MOST = 2**20


def predecessors(coords: Tensor) -> Tensor:
    """Indices [G, N] of the token at the same (y, x) in the latest earlier frame that has one; a token without one is its own.

    `coords` is [G, N, 3], (t, y, x); it need not be a whole grid.
    """
    import torch

    time, place = coords[..., 0], coords[..., 1] * _MOST + coords[..., 2]
    order = (place * _MOST + time).argsort(dim=1, stable=True)
    inside = place.gather(1, order)
    earlier = torch.where(inside[:, 1:] == inside[:, :-1], order[:, :-1], order[:, 1:])
    own = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return own.scatter(1, order[:, 1:], earlier)


def turns(features: Tensor, earlier: Tensor) -> Tensor:
    """[G, N] fp32: one minus the cosine of each state of [G, N, D] with that of its token in `earlier` [G, N].

    As half of the squared distance of unit vectors, which is the same and exact where a state did not change; a state of zeros
    is equal to another one. What differs behind the fifth decimal is rounding.
    """
    points = unit_rows(features)
    turned: Tensor = take_rows(points, earlier).sub_(points).square_().sum(2) / 2
    return turned.round(decimals=5)


def frame_numbers(coords: Tensor) -> Tensor:
    """[G, N] long: which of the frames that are left each token lies in, from 0; tokens of [G, N, 3] lie frame after frame."""
    import torch

    time = coords[..., 0]
    return torch.nn.functional.pad(time[:, 1:] != time[:, :-1], (1, 0)).cumsum(1)


def frame_means(values: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [G, N, D] of `values` [G, N, D] in each frame, and [G, N] how many tokens it has, both fp32.

    `frame` is [G, N] long. There are at most N frames; those that do not exist have a mean of zero and no tokens.
    """
    import torch

    summed = torch.zeros_like(values).scatter_add_(1, frame[..., None].expand_as(values), values)
    count = torch.zeros_like(values[..., 0]).scatter_add_(1, frame, torch.ones_like(values[..., 0]))
    return summed.div_(count.clamp(min=1)[..., None]), count


def ranks_in_frames(score: Tensor, frame: Tensor, count: Tensor) -> Tensor:
    """[G, N] long: place of each score [G, N] in its frame, 0 for the smallest; of equal ones the earlier comes first.

    `count` [G, N] is the number of tokens of each frame.
    """
    import torch

    order = score.argsort(dim=1, stable=True)
    order = order.gather(1, frame.gather(1, order).argsort(dim=1, stable=True))  # frame after frame, by score
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    starts = (count.cumsum(1) - count).long()
    return torch.zeros_like(order).scatter(1, order, place) - starts.gather(1, frame)
