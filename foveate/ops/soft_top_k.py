"""A top-k that has a gradient: how much each token is kept, so that the tokens of a group are kept `keep` times in all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Halvings of the interval that holds the threshold: more than the bits of a float64's fraction.
_HALVINGS = 60


def soft_top_k(score: Tensor, keep: float, temperature: float) -> Tensor:
    """Return how much each token is kept: m_i = sigmoid((s_i - t) / T), with t such that the m_i of a group sum to `keep`.

    As T falls the largest `keep` scores go to 1 and the others to 0; a shift of all scores of a group changes nothing. The
    gradient of t is that of the equation it solves: dt/ds_j = w_j / sum(w) with w = m (1 - m).

    Source: the differentiable top-k of VisionSelector, arXiv:2510.16598, as a threshold that is solved for.

    Args:
        score: [G, N], any float dtype; computed in float32 at least.
        keep: 0 < keep <= N, also between two whole numbers.
        temperature: T > 0, in units of the score.

    Returns:
        [G, N], from 0 to 1, float32 or float64; ones without a gradient for keep = N.

    Raises:
        ValueError: for another keep or temperature.
    """
    count = score.shape[1]
    if not (0 < keep <= count and temperature > 0):
        raise ValueError(f"soft_top_k: keep {keep} of {count} tokens at temperature {temperature}")
    score = score.to(torch.promote_types(score.dtype, torch.float32)) / temperature
    if keep == count:
        return torch.ones_like(score)
    threshold = _threshold(score.detach(), keep)
    # Its value stays as it was solved; what is added is nought, and has the gradient of one Newton step.
    kept = torch.sigmoid(score - threshold)
    slope = (kept * (1 - kept)).sum(1, keepdim=True).detach().clamp(min=torch.finfo(score.dtype).tiny)
    excess = kept.sum(1, keepdim=True)
    return torch.sigmoid(score - threshold - (excess - excess.detach()) / slope)


def _threshold(score: Tensor, keep: float) -> Tensor:
    """[G, 1] t with sum(sigmoid(score - t)) = keep, by halving."""
    # Where every score is the smallest one, or the largest, each token is kept keep / N times at these ends.
    offset = math.log(keep / (score.shape[1] - keep))
    low, high = score.amin(1, keepdim=True) - offset, score.amax(1, keepdim=True) - offset
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = torch.sigmoid(score - middle).sum(1, keepdim=True) > keep
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2
