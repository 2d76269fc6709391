"""Sparse matrices of provenance: row i says what kept token i is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


def block(matrix: Tensor, rows: Tensor, start: int, count: int) -> Tensor:
    """Rows `rows` and columns start..start+count of a coalesced sparse matrix; rows are consecutive."""
    index, value = matrix.indices(), matrix.values()
    first = int(rows[0]) if len(rows) else 0
    inside = (index[0] >= first) & (index[0] < first + len(rows)) & (index[1] >= start) & (index[1] < start + count)
    shifted = index[:, inside] - torch.tensor([[first], [start]], device="cpu")
    return torch.sparse_coo_tensor(shifted, value[inside], (len(rows), count), check_invariants=False).coalesce()


def block_diagonal(parts: list[Tensor]) -> Tensor:
    """Sparse block-diagonal matrix of sparse blocks."""
    indices, values = [torch.zeros(2, 0, dtype=torch.long, device="cpu")], [torch.zeros(0, dtype=torch.float32, device="cpu")]
    row, column = 0, 0
    for part in parts:
        indices.append(part.indices() + torch.tensor([[row], [column]], device="cpu"))
        values.append(part.values())
        row, column = row + part.shape[0], column + part.shape[1]
    return torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), (row, column), check_invariants=False).coalesce()


def product(part: Tensor, before: Tensor) -> Tensor:
    """The product of two coalesced sparse matrices. (torch.sparse.mm would do, but warns about its beta state.)"""
    (row, middle), weight = part.indices(), part.values()
    (known_row, source), known_weight = before.indices(), before.values()
    counts = torch.bincount(known_row, minlength=before.shape[0])
    starts = counts.cumsum(0) - counts
    repeats = counts[middle]
    within = torch.arange(int(repeats.sum()), device="cpu") - (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
    entry = starts[middle].repeat_interleave(repeats) + within
    index = torch.stack([row.repeat_interleave(repeats), source[entry]])
    value = weight.repeat_interleave(repeats) * known_weight[entry]
    return torch.sparse_coo_tensor(index, value, (part.shape[0], before.shape[1]), check_invariants=False).coalesce()
