"""An independent dense reference: the plain model at full length, with the keys of removed tokens masked.

Shares no code with the engine. Tokens that are gone before layer k are hidden from every query in layers >= k; positions
stay what they are. For merges, the merged states are put in place of the kept tokens' states at layer k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate import families


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    return model.get_submodule(families.family_for(model.config).decoder).layers


def mixer_of(layer: nn.Module) -> nn.Module | None:
    """What a decoder layer without attention has instead: linear attention or a short convolution."""
    return next((child for name, child in layer.named_children() if name in ("linear_attn", "conv")), None)


def without_the_gone(mixer: nn.Module, hidden: Tensor, kwargs: dict[str, Any], alive: Tensor | None) -> Tensor:
    """What a mixer makes of each row's living columns alone, at their places, zeros elsewhere. Masking keys says nothing here.

    Args:
        hidden: [B, S, D].   alive: [B, S'] bool, S' <= S; None for all.   kwargs: of the call, with its mask of padding.
    """
    mask = kwargs.get("attention_mask")
    there = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    if alive is not None:
        there = there & nn.functional.pad(alive, (0, hidden.shape[1] - alive.shape[1]), value=True)
    out = torch.zeros_like(hidden)
    for row, columns in enumerate(there):
        # Not through __call__: hooks stay out of it.
        made = type(mixer).forward(mixer, hidden_states=hidden[row : row + 1, columns])
        out[row, columns] = (made[0] if isinstance(made, tuple) else made)[0]
    return out


def reread(mixer: nn.Module, alive: Callable[[], Tensor | None]) -> Any:
    """Hook a mixer so that it reads living columns only; `alive` says which, when it is called."""

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        new = without_the_gone(module, hidden, kwargs, alive())
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return mixer.register_forward_hook(run, with_kwargs=True)


def left_at(alive: dict[int, Tensor], index: int) -> Tensor | None:
    """Columns [B, S] that are alive in a layer, None for all."""
    current: Tensor | None = None
    for layer, left in alive.items():
        if layer <= index:
            current = left if current is None else current & left
    return current


def mask_keys(mask: Tensor | None, alive: Tensor, queries: int, columns: int | None = None) -> Tensor:
    """The 4-D mask of a layer with the columns where `alive` [B, S] is False hidden; S may be shorter than the keys.

    Without a mask there are as many keys as `columns`, of which the queries are the last.
    """
    keys = (columns or queries) if mask is None else mask.shape[-1]
    alive = nn.functional.pad(alive, (0, keys - alive.shape[1]), value=True)[:, None, None]
    if mask is None:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None] & alive
    if mask.dtype == torch.bool:
        return mask & alive
    return torch.where(alive, mask, torch.finfo(mask.dtype).min)


@contextmanager
def dense_reference(model: nn.Module, alive: dict[int, Tensor], merged: dict[int, Tensor] | None = None) -> Iterator[None]:
    """Mask keys for the duration of the block.

    Args:
        model: a plain model, run without a cache (or with one, for the first forward).
        alive: {layer: [B, S] bool}, the columns that are alive from that layer on.
        merged: {layer: [S, S]-like linear map [B, S, S] fp32} applied to the hidden states entering that layer.
    """

    # Some models run their last layers for the last token alone; the keys are as many as in layer 0.
    columns = [0]

    def hook(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0]
            if index == 0:
                columns[0] = hidden.shape[1]
            if merged and index in merged:
                size = merged[index].shape[1]
                head = (merged[index] @ hidden[:, :size].float()).to(hidden.dtype)
                hidden = torch.cat([head, hidden[:, size:]], dim=1)
            current = left_at(alive, index)
            if current is not None and mixer_of(layers[index]) is None:
                mask = kwargs.get("attention_mask")
                kwargs["attention_mask"] = mask_keys(mask, current, hidden.shape[1], columns[0])
            return (hidden, *args[1:]), kwargs

        return run

    layers = decoder_layers(model)
    handles = [layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
    for index, layer in enumerate(layers):
        if (mixer := mixer_of(layer)) is not None:
            handles.append(reread(mixer, partial(left_at, alive, index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def eager_attention(model: nn.Module, inputs: dict[str, Tensor], alive: dict[int, Tensor]) -> dict[int, Tensor]:
    """Attention maps [B, H, S, S] of every decoder layer that attends, from eager `output_attentions` under `alive`."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with dense_reference(model, alive), torch.no_grad():
            maps = model(**inputs, output_attentions=True, use_cache=False).attentions
        attending = [index for index, layer in enumerate(decoder_layers(model)) if mixer_of(layer) is None]
        return dict(zip(attending, maps, strict=True))
    finally:
        model.set_attn_implementation(before)
