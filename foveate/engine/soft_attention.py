"""Attention that weighs keys by how much they are kept: the model's own without a policy, else Eq. 7 of arXiv:2412.00876.

With M_j in {0, 1}, G_ij = M_j + (1 - M_j) [i = j] multiplies exp(score). A dropped token attends to kept ones and itself, so
its own loss is defined. The weight stands in front of the softmax's sum and not in its logarithm: a dropped key still has a
gradient, the way by which it can come back.

Differs from the authors' code: it adds 1e-6 to the softmax, spread over all keys, future ones too; the paper does not, nor does
this. Gradients differ by about as much, but for sums that nearly cancel, such as those of a predictor's last biases
(tests/engine/test_soft_gradients.py compares every one in float64).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.engine import compat

SOFT = "foveate_soft"
POLICY = "foveate_policy"
# Scores held at once, over batch, heads, queries and keys: bounds the memory of a layer at any length of the prompt.
_SCORES_AT_ONCE = 1 << 24
# Above this a dropped key's exp(score) grows no more: it only scales a gradient.
_LARGEST = 20.0


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The number format of decisions and softmax weights: float32, or float64 for a model in float64."""
    return torch.promote_types(dtype, torch.float32)


class SoftConfig:
    """The config that an attention module shows while it is trained under a policy."""

    def __init__(self, wrapped: Any) -> None:
        self.__dict__["wrapped"] = wrapped

    def __getattr__(self, name: str) -> Any:
        return SOFT if name == "_attn_implementation" else getattr(self.__dict__["wrapped"], name)


def soft_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """The attention function of trained layers: as the model's own without a policy, else Eq. 7.

    Args:
        query: [B, H, S, D].   key, value: [B, Hk, S, D].   attention_mask: as the model's own implementation gets it.
    """
    policy = kwargs.pop(POLICY, None)
    if policy is None:
        function = compat.attention_function(module, module.config.wrapped._attn_implementation)  # type: ignore[union-attr, arg-type]
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    batch, heads, count, width = query.shape
    repeat = heads // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scaling = kwargs.get("scaling") or width**-0.5
    step = max(1, _SCORES_AT_ONCE // (batch * heads * count))
    parts = []
    for start in range(0, count, step):
        rows = query[:, :, start : start + step]
        seen = _seen(attention_mask, start, rows.shape[2], count, query.device)
        arguments = (rows, key, value, policy, seen, start, scaling, kwargs.get("softcap"))
        # Recomputed in backward, so that no scores are kept for it.
        part = checkpoint(_attend, *arguments, use_reentrant=False) if torch.is_grad_enabled() else _attend(*arguments)
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _seen(mask: Any, start: int, rows: int, count: int, device: torch.device) -> Tensor:
    """[B or 1, 1, rows, S] bool, from a mask of any format but flex's."""
    if isinstance(mask, Tensor) and mask.ndim == 4:
        part = mask[:, :, start : start + rows, :count]
        return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
    asking = torch.arange(start, start + rows, device=device)[:, None]
    causal = (torch.arange(count, device=device)[None] <= asking)[None, None]
    return causal if mask is None else causal & mask[:, None, None, :count].bool()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, policy: Tensor, seen: Tensor, start: int, scaling: float, softcap: float | None
) -> Tensor:
    """Eq. 7 for some query rows: [B, H, r, D]."""
    score = query @ key.transpose(-1, -2)
    score = score.to(at_least_float32(score.dtype)) * scaling
    if softcap is not None:
        score = torch.tanh(score / softcap) * softcap
    lowest = torch.finfo(score.dtype).min
    score = score.masked_fill(~seen, lowest)
    rows = torch.arange(start, start + query.shape[2], device=query.device)
    own = rows[:, None] == torch.arange(key.shape[2], device=query.device)[None]
    kept = torch.where(own, 1.0, policy.to(score.dtype)[:, None, None])  # G, [B, 1, r, S]
    # The largest score among keys that count: what is dropped must not push the others below what a float can hold.
    largest = score.detach().masked_fill(kept.detach() == 0, lowest).amax(-1, keepdim=True)
    weight = (score - largest).clamp(max=_LARGEST).exp() * kept
    share = weight / weight.sum(-1, keepdim=True)
    return share.to(value.dtype) @ value
