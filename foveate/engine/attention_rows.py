"""Attention rows and means from queries and keys: chunks of a bounded size, never an N x N tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

# Rows of attention held at once, over batch, heads and raters: bounds the memory of query=all at any prompt length.
_ROWS_AT_ONCE = 256


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Any,
    raters: Tensor,
    rater_valid: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Mean over the raters of their softmax rows: [B, H, P], fp32.

    Args:
        query: [B, H, Q, D].   key: [B, Hk, P, D].   mask: as the attention function gets it.
        raters: [B, R] long, query slots.   rater_valid: [B, R] bool.
        scaling, softcap: as the attention function gets them.
        order: [P] long, which of the mask's keys each key is, ascending columns; None if they are the same.

    Cost: O(H * R * P * D) time, O(H * P) memory beyond a bounded chunk of rows.
    """
    batch, heads, _, width = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    total = torch.zeros(batch, heads, keys, dtype=torch.float32, device=query.device)
    if order is None:
        order = torch.arange(keys, device=key.device)
    elif isinstance(mask, Tensor):
        mask = mask.index_select(-1, order)
    step = max(1, _ROWS_AT_ONCE // (batch * heads))
    transposed = key.transpose(-1, -2)
    for start in range(0, raters.shape[1], step):
        slots, valid = raters[:, start : start + step], rater_valid[:, start : start + step]
        rows = query.gather(2, slots[:, None, :, None].expand(-1, heads, -1, width))
        rows = rows.reshape(batch, key_heads, -1, width)  # query heads of one key head and their raters, side by side
        score = (rows @ transposed).float().view(batch, heads, -1, keys) * (scaling or width**-0.5)
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        score = _hide(score, mask, slots, query.shape[2], order)
        weight = valid[:, None, :, None] / rater_valid.sum(1).clamp(min=1)[:, None, None, None]
        total += (score.softmax(-1) * weight).sum(2)
    return total


def column_means(query: Tensor, key: Tensor, mask: Any, scaling: float | None = None) -> Tensor:
    """Mean over heads and queries of the attention that each key receives in a layer without causality: [B, N], fp32.

    Args:
        query, key: [B, H, N, D], of the keys fewer heads if they share them.
        mask: [B or 1, 1, N or 1, N] bool or added to the scores, or None.
        scaling: as the attention function gets it.

    Cost: O(H * N^2 * D) time, O(H * N) memory beyond a bounded chunk of rows.
    """
    batch, heads, count, width = query.shape
    total = torch.zeros(batch, key.shape[2], dtype=torch.float32, device=query.device)
    step = max(1, _ROWS_AT_ONCE // (batch * heads))
    if key.shape[1] < heads:
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
    # Laid out once: a product of strided heads would copy all keys again for each chunk.
    flat, transposed = query.reshape(batch * heads, count, width), key.reshape(batch * heads, -1, width).transpose(1, 2)
    for start in range(0, count, step):
        score = (flat[:, start : start + step] @ transposed).float() * (scaling or width**-0.5)
        score = score.view(batch, heads, -1, score.shape[-1])
        if mask is not None:
            row = mask if mask.shape[2] == 1 else mask[:, :, start : start + step]
            score = score.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else score + row
        total += score.softmax(-1).sum((1, 2))
    return total / (heads * count)


def _hide(score: Tensor, mask: Any, slots: Tensor, queries: int, order: Tensor) -> Tensor:
    """Apply a mask of any of the four formats to the rows [B, H, R, P] of `slots`; `order` as in `attention_rows`."""
    batch, _, _, keys = score.shape
    if isinstance(mask, BlockMask):
        rows = torch.arange(batch, device=score.device)[:, None, None]
        seen = mask.mask_mod(rows, torch.zeros_like(rows), slots[:, :, None], order[None, None])
        return score.masked_fill(~seen[:, None], -torch.inf)
    if mask is not None and mask.ndim == 4:
        index = slots[:, None, :, None].expand(-1, mask.shape[1], -1, keys)
        row = mask.expand(batch, -1, -1, -1).gather(2, index)
        return score.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else score + row
    position = torch.arange(keys, device=score.device)
    causal = position[None, None] <= (slots + keys - queries)[:, :, None]
    if mask is not None:
        causal = causal & mask[:, None, -keys:].bool()
    return score.masked_fill(~causal[:, None], -torch.inf)


def without_rope(states: Tensor, embeddings: Any, rotate: Callable[..., tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Turn rotated states [B, H, S, D] back: a rotation's inverse is the rotation by the opposite angle.

    `embeddings` is (cos, sin), each [1 or B, S, R] with R <= D, of the S positions; or complex numbers [1 or B, S, D / 2] for
    pairs of neighbours; or empty where nothing was rotated. `rotate` is the modeling file's own rotation of queries and keys
    by cos and sin, where it has the usual form: architectures differ in which channels they turn together.
    """
    if isinstance(embeddings, Tensor):
        pairs = torch.view_as_complex(states.float().reshape(*states.shape[:-1], -1, 2))
        return torch.view_as_real(pairs / embeddings[:, None]).flatten(-2).to(states.dtype)
    if not embeddings:
        return states
    if rotate is not None:
        cos, sin = (part.to(states.dtype) for part in embeddings)
        square = cos.square() + sin.square()
        return rotate(states, states[:, :1], cos / square, -sin / square)[0]
    cos, sin = (part[:, None].to(states.dtype) for part in embeddings)
    rotary = cos.shape[-1]
    turned, rest = states[..., :rotary], states[..., rotary:]
    first, second = turned.chunk(2, dim=-1)
    half = torch.cat([-second, first], dim=-1)
    # Some rotary embeddings scale by a constant; cos^2 + sin^2 is its square.
    scale = cos.square() + sin.square()
    return torch.cat([(turned * cos - half * sin) / scale, rest], dim=-1)
