"""VidCom2: frames that show something of their own keep more tokens, and in each frame those stay that are unlike the rest.

Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models", EMNLP 2025,
arXiv:2505.14454; the scales of the kernel and the temperature are those of the authors' program. Written from its mathematics.
Differs: exactly the stage's count stays, shared out by largest remainders (the authors round each frame's share for itself).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.ops.frames import frame_means, frame_numbers, ranks_in_frames
from foveate.ops.greedy import unit_rows
from foveate.ops.merging import take_rows

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
_TEMPERATURE = 0.01
# Squares of what is larger are no numbers.
_LARGE = 1e15


@dataclass(frozen=True)
class VidCom2(TokenMethod):
    """Likeness to the mean of the video says what a frame may keep; that and likeness to the mean of its frame, which tokens.

    Both are sums of Gaussian kernels over the half of the channels that vary least. Every frame keeps a token as far as they
    reach; of equal tokens the earlier one stays. A still image is one frame: the tokens least like its mean stay. Crops of one
    image count as frames, and with `scope=sample` the images of a prompt do.
    """

    paper = "arXiv 2505.14454"

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        frame = frame_numbers(view.coords)  # [G, N]
        points = unit_rows(_steady(view.features))
        to_video = _kernel(points, points.mean(1, keepdim=True))
        to_frame = _kernel(points, take_rows(frame_means(points, frame)[0], frame))
        likeness, count = frame_means(to_video[..., None], frame)  # [G, frames, 1], [G, frames]
        # What differs behind these decimals is rounding, which the temperature makes large.
        alike = likeness[..., 0].round(decimals=5).masked_fill(count == 0, torch.inf)
        unique = (-alike / _TEMPERATURE).softmax(1).round(decimals=6)
        share = count * (1 + unique - 1 / (count > 0).sum(1, keepdim=True))
        # In thousandths of a token. Whole ones and halves are frequent: no rounding up or down begins there.
        share = (share * (1000 * keep / share.sum(1, keepdim=True)) + 0.3).floor().long()
        # Tokens beyond the whole part of a frame's share come last, round by round, frames with the largest rests first.
        turn = (share % 1000).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        rank = ranks_in_frames((to_video + to_frame).round(decimals=5), frame, count)
        beyond = torch.where(rank == 0, -view.token_count, rank - (share // 1000).gather(1, frame))
        order = (beyond * view.token_count + turn.gather(1, frame)).argsort(dim=1, stable=True)
        return Selection(order[:, :keep].sort(1).values)


def _steady(features: Tensor) -> Tensor:
    """[G, N, D / 2] fp32: the half of the channels with the lowest variance over all tokens."""
    wide = features.detach().float().nan_to_num(0.0).clamp(-_LARGE, _LARGE)
    channel = wide.var(1, correction=0).argsort(dim=1, stable=True)[:, : max(1, wide.shape[2] // 2)]
    return wide.gather(2, channel[:, None].expand(-1, wide.shape[1], -1))


def _kernel(points: Tensor, centre: Tensor) -> Tensor:
    """[G, N] fp32: how like each of [G, N, D] is to its centre, [G, 1, D] or [G, N, D]; at most the number of scales."""
    import torch

    squares = (points - centre).square_().sum(2)
    return torch.stack([torch.exp(-squares / (2 * scale)) for scale in _SCALES]).sum(0)
