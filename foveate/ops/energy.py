"""How many tokens a picture needs by the spectrum of its states: a budget that follows what the picture shows."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_counts(features: Tensor, share: float) -> Tensor:
    """The smallest k of which the k largest singular values of each group's states hold `share` of the energy: [G], int64.

    Energy is the sum of squared singular values: a picture of one colour needs one token, one without two alike needs most. The
    mean is left in. Groups that hold a number that is none, or nothing but zeros, have 1.

    Args:
        features: [G, N, D].
        share: above 0 and below 1.
    """
    states = features.detach().float()
    usable = states.isfinite().flatten(1).all(1)[:, None, None]
    # Divided by the largest entry, which changes no share: squares of large states would be infinite.
    states = torch.where(usable, states, 0.0)
    states = states / states.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    # Squared singular values are the eigenvalues of the smaller of the two products.
    product = states @ states.mT if states.shape[1] <= states.shape[2] else states.mT @ states
    largest_first = torch.linalg.eigvalsh(product.double()).clamp(min=0).flip(1)
    held = largest_first.cumsum(1)
    # As many as do not hold enough yet, and one more; the last sum is the whole, whatever it rounds to.
    lacking: Tensor = held[:, :-1] < share * held[:, -1:]
    return 1 + lacking.sum(1)
