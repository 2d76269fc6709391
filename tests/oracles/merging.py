"""The merge methods in plain loops, as their papers write them: what is left of one group of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def illava_v1_kept(features: Tensor, importance: Sequence[float], keep: int, ramp: str = "least") -> dict[int, Tensor]:
    """State of each survivor: with r removed, the r + 1 least important weigh r + 1, r, ..., 1 in the one that stays."""
    h, count = features.double(), len(importance)
    ascending = sorted(range(count), key=lambda j: importance[j])
    r = count - keep
    chosen = ascending[: r + 1]
    left = {j: h[j] for j in range(count) if j not in chosen[:-1]}
    if r:
        weights = [{"least": r + 1 - i, "most": i + 1, "even": 1}[ramp] for i in range(r + 1)]
        left[chosen[-1]] = sum(w * h[j] for w, j in zip(weights, chosen, strict=True)) / sum(weights)
    return left


def illava_v2_kept(
    features: Tensor, importance: Sequence[float], keep: int, recycle: float = 0.05, partners: int = 5, absorb: float = 0.5
) -> dict[int, Tensor]:
    """State of each survivor: the least important survivors absorb the removed tokens most similar to them."""
    h = features.double()
    order = sorted(range(len(importance)), key=lambda j: -importance[j])
    removed = order[keep:]
    left = {j: h[j] for j in order[:keep]}
    for c in order[keep - max(1, round(recycle * keep)) : keep] if removed else []:
        best = sorted(removed, key=lambda j: -float(h[c] @ h[j]))[:partners]
        shares = torch.stack([h[c] @ h[j] / math.sqrt(h.shape[1]) for j in best]).softmax(0)
        left[c] = (1 - absorb) * h[c] + absorb * sum(a * h[j] for a, j in zip(shares, best, strict=True))
    return left


def illava_v2_dropped(features: Tensor, importance: Sequence[float], keep: int) -> dict[int, Tensor]:
    """Mode 1: the most important tokens as they are."""
    return {j: features[j].double() for j in sorted(range(len(importance)), key=lambda j: -importance[j])[:keep]}


def illava_v2_shifted(features: Tensor, keep: int) -> dict[int, Tensor]:
    """Mode 2: the last token and the one before it become their mean, until `keep` are left."""
    left = list(features.double())
    while len(left) > keep:
        last = left.pop()
        left[-1] = (left[-1] + last) / 2
    return dict(enumerate(left))


def partition_kept(features: Tensor, importance: Sequence[float], sizes: Tensor, keep: int) -> dict[int, Tensor]:
    """State of each survivor: the mean by size of itself and the removed tokens most similar to it."""
    h, sizes = features.double(), sizes.double()
    survivors = sorted(sorted(range(len(importance)), key=lambda j: -importance[j])[:keep])
    members = {k: [k] for k in survivors}
    for j in range(len(importance)):
        if j not in members:
            members[max(survivors, key=lambda k: float(torch.cosine_similarity(h[j], h[k], dim=0)))].append(j)
    return {k: sum(sizes[j] * h[j] for j in own) / sum(sizes[j] for j in own) for k, own in members.items()}


def tome_kept(features: Tensor, sizes: Tensor, keep: int) -> dict[int, tuple[Tensor, float]]:
    """State and size of each survivor; survivors are named after their token of set B, or themselves."""
    alive = [(j, features[j].double(), float(sizes[j])) for j in range(len(features))]
    while len(alive) > keep:
        removing = min(len(alive) - keep, len(alive) // 2)
        links = []
        for a in range(0, len(alive), 2):
            similar = [float(torch.cosine_similarity(alive[a][1], alive[b][1], dim=0)) for b in range(1, len(alive), 2)]
            links.append((max(similar), a, 1 + 2 * similar.index(max(similar))))
        chosen = sorted(links, key=lambda link: -link[0])[:removing]
        for _, a, b in chosen:
            # All merges of a round use the states of its start: a mean of means by size is the mean of all.
            name, state, size = alive[b]
            total = size + alive[a][2]
            alive[b] = (name, (state * size + alive[a][1] * alive[a][2]) / total, total)
        gone = {a for _, a, _ in chosen}
        alive = [token for i, token in enumerate(alive) if i not in gone]
    return {name: (state, size) for name, state, size in alive}
