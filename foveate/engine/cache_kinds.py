"""Which cache layers can hold fewer slots than columns, and swapping them in.

What a kind of layer can do stands on its class (`slots.SlotLayer`); nothing else asks which kind it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    HQQQuantizedLayer,
    QuantoQuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from foveate.engine import compat
from foveate.engine.dynamic_cache import SlotDynamicLayer, SlotSlidingLayer
from foveate.engine.quantized_cache import SlotFp8Layer, SlotHQQLayer, SlotQuantoLayer
from foveate.engine.slots import SlotLayer
from foveate.engine.static_cache import SlotStaticLayer, SlotStaticSlidingLayer
from foveate.errors import UnsupportedCombination

SLOT_CLASSES: dict[type, type[SlotLayer]] = {
    DynamicLayer: SlotDynamicLayer,
    DynamicSlidingWindowLayer: SlotSlidingLayer,
    StaticLayer: SlotStaticLayer,
    StaticSlidingWindowLayer: SlotStaticSlidingLayer,
    QuantoQuantizedLayer: SlotQuantoLayer,
    HQQQuantizedLayer: SlotHQQLayer,
    **({compat.FP8_LAYER: SlotFp8Layer} if compat.FP8_LAYER else {}),
}
# What generate() calls the caches that can be pruned.
NAMES = tuple(dict.fromkeys(kind.cache for kind in SLOT_CLASSES.values()))


def kind_of(layer: Any) -> type[SlotLayer] | None:
    """The slot class of a cache layer, swapped in already or not; None for a layer that cannot be pruned."""
    return type(layer) if isinstance(layer, SlotLayer) else SLOT_CLASSES.get(type(layer))


def check_cache(cache: Cache, config: Any, masks: bool) -> None:
    """Refuse a cache that cannot be pruned, before anything is written.

    Args:
        cache: the cache of a call.
        config: the decoder's config.
        masks: whether the plan hides tokens instead of dropping them.

    Raises:
        UnsupportedCombination: says why, and what to use.
    """
    for layer in cache.layers:
        kind = kind_of(layer)
        if compat.keeps_no_slots(layer):
            continue
        if masks:
            if kind is not None and not kind.masks:
                raise UnsupportedCombination("effect=mask chooses anew at every step: use a dynamic cache, or effect=drop")
        elif kind is None:
            raise UnsupportedCombination(_refusal(layer))
        else:
            _check_flash(kind, config)


def _check_flash(kind: type[SlotLayer], config: Any) -> None:
    if kind.compiles and "flash" in config._attn_implementation:
        raise UnsupportedCombination(
            "a static cache under flash attention cannot tell empty slots from pruned ones: use sdpa, or a dynamic cache"
        )


def reserves(layer: Any) -> bool:
    """Whether a cache layer reserves slots ahead, and has not yet."""
    kind = kind_of(layer)
    return kind is not None and kind.compiles and not layer.is_initialized


def check_gated_cache(cache: Cache, config: Any, first: int, name: str) -> None:
    """Refuse a cache whose layers from `first` on cannot leave out single tokens, before anything is written.

    Raises:
        UnsupportedCombination: says which cache can.
    """
    for layer in cache.layers[first:]:
        kind = kind_of(layer)
        if compat.keeps_no_slots(layer):
            continue
        if kind is None or not kind.forgets:
            raise UnsupportedCombination(
                f"{name} decides token by token what is stored, which {type(layer).__name__} cannot: use a dynamic cache"
            )
        _check_flash(kind, config)


def _refusal(layer: Any) -> str:
    return f"{type(layer).__name__} cannot hold a pruned cache; use a dynamic, static or quantized cache, or detach the plan"


def slot_layer(cache: Cache, index: int) -> SlotLayer:
    """Return layer `index` of a cache as a slot layer, swapping it in place the first time.

    Raises:
        UnsupportedCombination: for a kind of cache that cannot hold fewer slots than columns.
    """
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, SlotLayer):
        return layer
    slot_class = SLOT_CLASSES.get(type(layer))
    if slot_class is None:
        raise UnsupportedCombination(_refusal(layer))
    # A new object with the old state: assigning __class__ fails, the layouts differ.
    new: SlotLayer = slot_class.__new__(slot_class)
    new.__dict__.update(layer.__dict__)
    new.begin()
    cache.layers[index] = new
    return new


def stored_bytes(cache: Cache) -> int | None:
    """Bytes of the keys, values and states in a cache, a static one's reservation included.

    None if the backend quantizes them.
    """
    if not _is_measurable(cache):
        return None
    stored = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    states = [state for layer in cache.layers for state in compat.states_of(layer)]
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in stored) + sum(int(state.nbytes) for state in states)


def lasting_bytes(cache: Cache) -> int | None:
    """As `stored_bytes`, without the slots that a gate rejected and that wait to be taken away."""
    held = stored_bytes(cache)
    if held is None:
        return None
    waiting = [layer for layer in cache.layers if isinstance(layer, SlotLayer) and layer.gated and layer.slots]
    return held - sum((layer.slots - layer.lasting_slots) * bytes_per_slot(layer) for layer in waiting)


def bytes_of_columns(cache: Cache, wanted: Tensor) -> int | None:
    """Bytes of the slots that hold certain columns; rejected slots hold none.

    Args:
        cache: of a single row.
        wanted: [C] bool on the CPU, for all columns that the cache has seen.

    Returns:
        None for a static cache, which reserves its slots, and where the backend quantizes them.
    """
    kinds = [kind_of(layer) for layer in cache.layers]
    if not _is_measurable(cache) or any(kind is not None and kind.compiles for kind in kinds):
        return None
    total = 0
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        if keys is None or not keys.numel():
            continue
        slots = keys.shape[-2]
        columns = layer.positions(1, keys.device)[0].cpu() if isinstance(layer, SlotLayer) else None
        held = wanted[-slots:] if columns is None else wanted[columns[columns >= 0]]
        total += int(held.sum()) * (int(keys.nbytes + layer.values.nbytes) // slots)
    return total


def ungated_bytes(cache: Cache, first: int, rejected: int) -> int | None:
    """As `lasting_bytes`, with the `rejected` tokens of the answer that the layers from `first` on did not store.

    A layer that reserves its slots would have reserved more. A sliding layer is counted as it is: without a gate its window
    would hold other tokens, not more.
    """
    lasting = lasting_bytes(cache)
    if lasting is None:
        return None
    gated = [layer for layer in cache.layers[first:] if isinstance(layer, SlotLayer) and layer.slots and not layer.is_sliding]
    spared = [(layer, max(0, layer.ungated_slots - layer.slots) if layer.compiles else rejected) for layer in gated]
    return lasting + sum(slots * bytes_per_slot(layer) for layer, slots in spared)


def bytes_per_slot(layer: SlotLayer) -> int:
    """Bytes of one slot of all rows of a layer that holds some."""
    return int(layer.keys.nbytes + layer.values.nbytes) // layer.slots


def _is_measurable(cache: Cache) -> bool:
    """Whether keys and values can be read; of a layer of somebody else's too."""
    kinds = [(layer, kind_of(layer)) for layer in cache.layers]
    return all(not hasattr(layer, "_quantized_keys") if kind is None else kind.measurable for layer, kind in kinds)
