"""FastV in plain loops, from the paper: the twin of foveate/methods/fastv.py."""

from __future__ import annotations

from torch import Tensor


def fastv_kept(attention: Tensor, row: int, columns: list[int], raters: list[int], keep: int) -> list[int]:
    """Columns that stay, ascending. `attention` [B, H, S, S] belongs to the layer before the cut."""
    heads = attention.shape[1]
    received = []
    for column in columns:
        total = 0.0
        for rater in raters:
            for head in range(heads):
                total += float(attention[row, head, rater, column])
        received.append(total / heads / len(raters))
    ranked = sorted(range(len(columns)), key=lambda index: (-received[index], index))
    return sorted(columns[index] for index in ranked[:keep])
