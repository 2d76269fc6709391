"""Measuring attention rows from the queries and keys that a layer has anyway. No N x N tensor is ever made.

During one call of one attention module, `module.config` is a stand-in that names our probe as the attention implementation.
The probe sees queries and keys behind every norm and rotation that the architecture applies, measures, and calls the
implementation that would have run. The model's own config never changes, so masks keep their format. Which call is to be
measured stands in a context variable: another thread that uses the model meanwhile sees its own implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from foveate.core.layout import Layout, Role
from foveate.engine import compat

PROBE = "foveate_probe"
# Rows of attention held at once, over batch, heads and raters: bounds the memory of query=all at any prompt length.
_ROWS_AT_ONCE = 256

Callback = Callable[[Tensor, Tensor, Any, float | None, float | None], None]

# In this context: module (by id) -> what to do with its queries and keys; None once that has been done.
_NOTHING: Mapping[int, Callback | None] = MappingProxyType({})
_armed: ContextVar[Mapping[int, Callback | None]] = ContextVar("foveate_armed", default=_NOTHING)
_lock = Lock()
# Who may arm modules: the probe is known to transformers as long as there is somebody.
_users: WeakSet[object] = WeakSet()


def enable(user: object) -> None:
    """Make the probe known to transformers for a user of it."""
    with _lock:
        _users.add(user)
        compat.register_attention(PROBE, probe)


def disable(user: object) -> None:
    """End a user's need of the probe; the last one takes it away. Calling it twice does nothing."""
    with _lock:
        _users.discard(user)
        if not _users:
            compat.unregister_attention(PROBE)


class ProbeConfig:
    """The config an attention module shows while calls of it are measured; `users` counts them over all threads."""

    def __init__(self, wrapped: Any, module: nn.Module) -> None:
        self.__dict__.update(wrapped=wrapped, module=id(module), users=0)

    def __getattr__(self, name: str) -> Any:
        if name == "_attn_implementation" and _armed.get().get(self.__dict__["module"]) is not None:
            return PROBE
        return getattr(self.__dict__["wrapped"], name)


def implementation(module: nn.Module) -> str:
    """The attention implementation that a module has, also while calls of it are measured."""
    config = module.config.wrapped if isinstance(module.config, ProbeConfig) else module.config
    return str(config._attn_implementation)  # type: ignore[union-attr]


class EveryCall:
    """A callback that stays armed for all attention calls within one call of the module, which may have one per sequence."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback

    def __call__(self, query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
        self.callback(query, key, mask, scaling, softcap)


def arm(module: nn.Module, callback: Callback) -> None:
    """Measure this context's next call of an attention module."""
    disarm(module)  # an interrupt may have left the callback of a call that never came
    with _lock:
        if not isinstance(module.config, ProbeConfig):
            module.config = ProbeConfig(module.config, module)  # type: ignore[assignment]
        module.config.__dict__["users"] += 1
    _armed.set({**_armed.get(), id(module): callback})


def disarm(module: nn.Module) -> None:
    """End this context's measuring, whether or not the call got as far as its attention function."""
    if id(module) not in _armed.get():
        return
    _armed.set({key: value for key, value in _armed.get().items() if key != id(module)})
    with _lock:
        config = module.config
        if isinstance(config, ProbeConfig):
            config.__dict__["users"] -= 1
            if config.__dict__["users"] == 0:
                module.config = config.wrapped


def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
    """The attention function that stands in: measure, then delegate."""
    armed = dict(_armed.get())
    callback = armed[id(module)]
    armed[id(module)] = None  # from here on the module shows its real implementation: flash reads the name once more
    _armed.set(armed)
    assert callback is not None
    callback(query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"))
    function = compat.attention_function(module, module.config._attn_implementation)  # type: ignore[arg-type, union-attr]
    result = function(module, query, key, value, attention_mask, *args, **kwargs)
    if isinstance(callback, EveryCall):
        _armed.set({**_armed.get(), id(module): callback})
    return result


def rater_columns(layout: Layout, query: str, output_rates: bool = False) -> list[list[list[int]]]:
    """For each row and each sample in it the columns whose attention counts, ascending; at least the last real one.

    `query` is "last", "text" (the instruction behind the sample's last medium), "all" or "window:w". Generated tokens rate only
    if `output_rates`: assisted decoding puts guesses behind the prompt already in the first pass.
    """
    return [
        [_raters(layout.roles[row], part, query, output_rates) for part in layout.parts(row) if len(part)]
        for row in range(layout.roles.shape[0])
    ]


def _raters(roles: Tensor, real: Tensor, query: str, output_rates: bool) -> list[int]:
    """The raters of one sample, whose real columns are given."""
    prompt = real[roles[real] != int(Role.OUTPUT)]
    real = real if output_rates or not len(prompt) else prompt
    chosen = real[-1:]
    if query == "all":
        chosen = real
    elif query.startswith("window:"):
        chosen = real[-int(query.partition(":")[2]) :]
    elif query == "text":
        visual = real[roles[real] == int(Role.VISUAL)]
        after = int(visual[-1]) if len(visual) else -1
        text = real[(real > after) & (roles[real] == int(Role.INSTRUCT))]
        chosen = text if len(text) else chosen
    columns: list[int] = chosen.tolist()
    return columns


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
        query, key: [B, H, N, D].   mask: [B or 1, 1, N or 1, N] bool or added to the scores, or None.
        scaling: as the attention function gets it.

    Cost: O(H * N^2 * D) time, O(H * N) memory beyond a bounded chunk of rows.
    """
    batch, heads, count, width = query.shape
    total = torch.zeros(batch, key.shape[2], dtype=torch.float32, device=query.device)
    step = max(1, _ROWS_AT_ONCE // (batch * heads))
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
