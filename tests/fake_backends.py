"""CPU stand-ins for flash and flex attention that keep the kernels' contracts, through transformers' public registries.

Flash: 2-D masks over the keys it really gets, bottom-right causal, a window that counts slots, packed sequences detected
from position ids. Flex: a BlockMask of exactly the shape of queries and keys. What is emulated are the contracts, not the
kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers.masking_utils import (
    AttentionMaskInterface,
    add_offsets_to_mask_function,
    and_masks,
    causal_mask_function,
    flash_attention_mask,
    padding_mask_function,
    prepare_padding_mask,
)
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.modeling_utils import AttentionInterface

from foveate import families

FLASH, FLEX = "emulated_flash", "emulated_flex"
# Calls that flash would have taken for packed sequences.
packed: list[Tensor] = []


def flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    batch, heads, queries, _ = query.shape
    keys, groups = key.shape[2], heads // key.shape[1]
    causal = module.is_causal if is_causal is None else is_causal
    row, column = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    seen = column <= row if causal else torch.ones(queries, keys, dtype=torch.bool)
    if sliding_window is not None:
        seen = seen & (column > row - sliding_window)
    seen = seen[None, None]
    if attention_mask is not None:
        assert attention_mask.ndim == 2 and attention_mask.shape == (batch, keys), (attention_mask.shape, keys)
        seen = seen & attention_mask.bool()[:, None, None]
    elif position_ids is not None and bool(_is_packed_sequence(position_ids, batch)):
        packed.append(position_ids)
    # An unpadding kernel never computes rows of padding; here they must at least not be nan.
    seen = seen | ~seen.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=seen, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


def flex_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: Any = "cpu",
    **_: Any,
) -> BlockMask:
    if attention_mask is not None and not bool(attention_mask.all()):
        padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
        mask_function = and_masks(mask_function, padding_mask_function(padding))
    function = add_offsets_to_mask_function(mask_function, q_offset, kv_offset)
    return create_block_mask(function, batch_size, None, q_length, kv_length, device=device, _compile=False)


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    batch, heads, queries, _ = query.shape
    keys, groups = key.shape[2], heads // key.shape[1]
    seen, causal = None, False
    if attention_mask is not None:
        assert isinstance(attention_mask, BlockMask), type(attention_mask)
        assert tuple(attention_mask.seq_lengths) == (queries, keys), (attention_mask.seq_lengths, queries, keys)
        seen = create_mask(attention_mask.mask_mod, batch, 1, queries, keys, device=query.device)
        seen = seen | ~seen.any(-1, keepdim=True)
    else:
        causal = queries > 1
    out = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=seen,
        is_causal=causal,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the stand-ins known to transformers."""
    AttentionInterface.register(FLASH, flash)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)
    AttentionInterface.register(FLEX, flex)
    AttentionMaskInterface.register(FLEX, flex_mask)


def use(model: nn.Module, name: str) -> None:
    """Switch the decoder; the vision encoder keeps its own implementation, which is not under test."""
    model.get_submodule(families.family_for(model.config).decoder).config._attn_implementation = name
