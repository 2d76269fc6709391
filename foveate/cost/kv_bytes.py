"""Bytes of keys and values that a KV cache stores."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.core.shape import DecoderShape


def kv_bytes_per_slot(decoder: DecoderShape, dtype_bytes: int = 2, layer: int = 0) -> int:
    """Bytes of one token's key and value in one layer: 2 * kv_heads * head_dim * dtype_bytes, 0 if it reads another's."""
    shape = decoder.layer(layer)
    return 2 * shape.kv_heads * shape.head_dim * dtype_bytes if shape.projected else 0


def kv_slots(decoder: DecoderShape, tokens_per_layer: Sequence[int]) -> list[int]:
    """Slots that each layer stores once `tokens_per_layer[i]` tokens have passed layer i.

    Rule for sliding layers: at most window - 1 slots, as transformers' DynamicSlidingWindowLayer keeps (the next token brings
    its own key). Under a plan this is an upper bound: the window counts columns of the unpruned prompt, and fewer tokens
    than window - 1 may have survived within it.
    """
    slots = []
    for layer, tokens in enumerate(tokens_per_layer):
        window = decoder.window(layer)
        slots.append(tokens if window is None else min(tokens, window - 1))
    return slots


def kv_bytes(decoder: DecoderShape, tokens_per_layer: Sequence[int], dtype_bytes: int = 2) -> int:
    """Bytes of a dynamic KV cache for one sample after `tokens_per_layer[i]` tokens have passed layer i.

    Static caches reserve their full length whatever the plan says.
    """
    slots = kv_slots(decoder, tokens_per_layer)
    return sum(count * kv_bytes_per_slot(decoder, dtype_bytes, layer) for layer, count in enumerate(slots))
