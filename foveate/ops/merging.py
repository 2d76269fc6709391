"""Merging tokens: where removed tokens go, and with which weights. No N x N tensor is ever made, nothing waits for a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveate.core.selection import Selection

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# Rows of a similarity table that are held at once: bounds its memory at rows x kept tokens.
_ROWS_AT_ONCE = 512


def removed_indices(kept: Tensor, count: int) -> Tensor:
    """Return the indices [G, N - K] that are not in `kept` [G, K], ascending."""
    import torch

    is_kept = torch.zeros(kept.shape[0], count, dtype=torch.bool, device=kept.device).scatter(1, kept, True)
    order: Tensor = torch.argsort(is_kept.to(torch.uint8), dim=1, stable=True)
    return order[:, : count - kept.shape[1]]


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return rows [G, M, D] of `values` [G, N, D] at `index` [G, M]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def nearest(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each query, the cosine similarity to its most similar key and that key's index: [G, Q] fp32 and long.

    Args:
        queries: [G, Q, D], any float dtype.
        keys: [G, K, D], K >= 1.

    Cost: O(Q K D) time, O(512 K) memory per group. Of equally similar keys the earlier one wins.
    """
    import torch

    wide = torch.nn.functional.normalize(keys.float(), dim=-1)
    parts = [
        (torch.nn.functional.normalize(part.float(), dim=-1) @ wide.transpose(1, 2)).max(dim=-1)
        for part in torch.split(queries, _ROWS_AT_ONCE, dim=1)
    ]
    return torch.cat([part.values for part in parts], 1), torch.cat([part.indices for part in parts], 1)


def pairs_of_nearest(tokens: int) -> int:
    """How many pairs `nearest` holds at once, at most, if queries and keys together are `tokens`."""
    rows = min(_ROWS_AT_ONCE, (tokens + 1) // 2)
    return rows * (tokens - rows)


def weighted_mean(kept: Tensor, host: Tensor, sizes: Tensor) -> Selection:
    """Return the selection in which every token joins its host, and a host becomes the mean of its tokens by their sizes.

    Args:
        kept: [G, K] long, ascending.
        host: [G, N] long, the kept token that each token joins; a kept token is its own host.
        sizes: [G, N] fp32, how many original tokens each token stands for.
    """
    import torch

    source = removed_indices(kept, host.shape[1])
    total = torch.zeros_like(sizes).scatter_add(1, host, sizes)
    share = sizes / total.gather(1, host)
    return Selection(
        kept, source=source, target=host.gather(1, source), weight=share.gather(1, source), self_weight=share.gather(1, kept)
    )


def to_nearest(kept: Tensor, metric: Tensor) -> Tensor:
    """Return the host [G, N] of every token: itself if kept, else the kept token most similar to it by `metric` [G, N, D]."""
    import torch

    count = metric.shape[1]
    removed = removed_indices(kept, count)
    _, slot = nearest(take_rows(metric, removed), take_rows(metric, kept))
    host = torch.arange(count, device=kept.device).expand(kept.shape[0], -1)
    return host.scatter(1, removed, kept.gather(1, slot))


def bipartite_hosts(metric: Tensor, sizes: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching, repeated until `keep` tokens are left; returns kept [G, keep] and host [G, N].

    A round splits the tokens into alternating sets A and B, links each token of A to the most similar one of B, and merges
    along the most similar links. A round removes at most half of the tokens; what merged goes on with its mean.
    Source: Bolya et al., "Token Merging", arXiv 2210.09461, Sec. 3.

    Args:
        metric: [G, N, D] what is compared (the paper: keys, averaged over heads).
        sizes: [G, N] fp32.
        keep: tokens to keep, 1 <= keep <= N.
    """
    import torch

    groups, count = metric.shape[:2]
    alive = torch.arange(count, device=metric.device).expand(groups, -1)
    host = alive
    while alive.shape[1] > keep:
        now = alive.shape[1]
        removing = min(now - keep, now // 2)
        first, second = torch.arange(0, now, 2, device=alive.device), torch.arange(1, now, 2, device=alive.device)
        similarity, slot = nearest(metric[:, first], metric[:, second])
        edge = torch.argsort(similarity, dim=1, descending=True, stable=True)[:, :removing]
        source, target = first[edge], second[slot.gather(1, edge)]  # positions among the tokens alive
        pairing = torch.arange(now, device=alive.device).expand(groups, -1).scatter(1, source, target)
        rest = removed_indices(source.sort(1).values, now)
        metric, sizes = _merged(metric, sizes, pairing, rest)
        # Original tokens follow the token that stands for them.
        place = torch.zeros(groups, count, dtype=torch.long, device=alive.device)
        place = place.scatter(1, alive, alive.gather(1, pairing))
        host = place.gather(1, host)
        alive = alive.gather(1, rest)
    return alive, host


def _merged(metric: Tensor, sizes: Tensor, pairing: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Metric and sizes of the tokens that are left, after every token joined `pairing` by its size."""
    import torch

    wide = metric.float() * sizes[..., None]
    total = torch.zeros_like(sizes).scatter_add(1, pairing, sizes)
    summed = torch.zeros_like(wide).scatter_add(1, pairing[..., None].expand_as(wide), wide)
    return take_rows(summed / total.clamp(min=1e-9)[..., None], rest), total.gather(1, rest)
