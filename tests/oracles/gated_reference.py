"""An independent reference for gated decoding: the plain model reads the whole answer at once, under masks made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.dense_reference import decoder_layers, left_at, mixer_of, reread


@contextmanager
def gated_reference(
    model: nn.Module, layer: int, rejected: Tensor, recent: int = 1, alive: dict[int, Tensor] | None = None
) -> Iterator[None]:
    """From `layer` on, hide each rejected column from all but itself and the `recent` - 1 columns behind it.

    Args:
        model: a plain model, run without a cache.
        rejected: [B, S] bool.
        alive: {layer: [B, S] bool}, columns that token stages left from that layer on.
    """

    def hook(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if mixer_of(layers[index]) is not None:
                return None  # a state takes in what attention forgets
            width, mask = hidden.shape[1], kwargs.get("attention_mask")
            if mask is None:
                mask = torch.ones(width, width, dtype=torch.bool).tril()[None, None].expand(len(hidden), 1, -1, -1)
            allowed = torch.ones(len(hidden), width, width, dtype=torch.bool)
            for row in range(len(hidden)):
                for column in range(min(width, rejected.shape[1])):
                    if index >= layer and rejected[row, column]:
                        allowed[row, column + recent :, column] = False
                for first, left in (alive or {}).items():
                    if first <= index:
                        allowed[row, :, : left.shape[1]] &= left[row]
            if mask.dtype == torch.bool:
                changed = mask & allowed[:, None]
            else:
                changed = torch.where(allowed[:, None], mask, torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": changed}

        return run

    layers = decoder_layers(model)
    handles = [one.register_forward_pre_hook(hook(index), with_kwargs=True) for index, one in enumerate(layers)]
    for index, one in enumerate(layers):
        if (mixer := mixer_of(one)) is not None:
            handles.append(reread(mixer, partial(left_at, alive or {}, index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
