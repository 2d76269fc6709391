"""Bytes of keys and values that a KV cache stores, and of the states of layers without attention."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.core.shape import DecoderShape


def kv_bytes_per_slot(decoder: DecoderShape, dtype_bytes: int = 2, layer: int = 0) -> int:
    """Bytes of one token's key and value in one layer: 2 * kv_heads * head_dim * dtype_bytes.

    0 if the layer reads another's, or keeps a state instead.
    """
    shape = decoder.layer(layer)
    return 2 * shape.kv_heads * shape.head_dim * dtype_bytes if shape.projected and shape.state is None else 0


def state_bytes(decoder: DecoderShape, dtype_bytes: int = 2) -> int:
    """Bytes of the states of all layers without attention, for one sequence of any length."""
    states = [decoder.layer(layer).state for layer in range(decoder.layers)]
    return sum(state.held * dtype_bytes + state.held_fp32 * 4 for state in states if state is not None)


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
    keys_and_values = sum(count * kv_bytes_per_slot(decoder, dtype_bytes, layer) for layer, count in enumerate(slots))
    return keys_and_values + state_bytes(decoder, dtype_bytes)
