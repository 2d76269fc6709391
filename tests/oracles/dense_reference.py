"""An independent dense reference: the plain model at full length, with the keys of removed tokens masked.

Shares no code with the engine. Tokens that are gone before layer k are hidden from every query in layers >= k; positions
stay what they are. For merges, the merged states are put in place of the kept tokens' states at layer k.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate import families


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    return model.get_submodule(families.family_for(model.config).decoder).layers


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
            current: Tensor | None = None
            for layer, left in alive.items():
                if layer <= index:
                    current = left if current is None else current & left
            if current is not None:
                mask = kwargs.get("attention_mask")
                kwargs["attention_mask"] = mask_keys(mask, current, hidden.shape[1], columns[0])
            return (hidden, *args[1:]), kwargs

        return run

    handles = [
        layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(decoder_layers(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def eager_attention(model: nn.Module, inputs: dict[str, Tensor], alive: dict[int, Tensor]) -> tuple[Tensor, ...]:
    """Attention maps [B, H, S, S] of every decoder layer, from eager `output_attentions` under the masks of `alive`."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with dense_reference(model, alive), torch.no_grad():
            return model(**inputs, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(before)
