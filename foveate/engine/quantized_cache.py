"""Quantized cache layers that store fewer slots than the columns they report.

What a stage removes is never stored, so the layer is shorter as well as narrower. Slots that were quantized together cannot be
told apart again: what a gate rejects leaves while it waits in full precision, before it would be quantized. FP8 numbers stand
for themselves, there it can leave later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, HQQQuantizedLayer, QuantoQuantizedLayer

from foveate.engine import compat
from foveate.engine.dynamic_cache import DynamicSlots
from foveate.engine.projection import take
from foveate.errors import UnsupportedCombination


class QuantizedSlots(DynamicSlots):
    """Mixed in front of a quantized cache layer: what a stage removes is never stored; what is stored stays."""

    cache = "quantized"
    measurable = False
    _quantized_keys: Any
    _quantized_values: Any

    @property
    def slots(self) -> int:
        """Stored slots: the quantized states have no length to be asked for."""
        if not hasattr(self, "_tail"):
            return int(self.cumulative_length)  # type: ignore[attr-defined]
        return self._tail + (0 if self._prefix is None else self._prefix.shape[1])

    def evict(self, keep: Tensor) -> None:
        """Refused: slots that were quantized together cannot be told apart again."""
        raise UnsupportedCombination("a quantized cache cannot forget single slots: use a dynamic cache")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, as `evict`; assisted decoding would need it."""
        if compat.columns_to_crop(tokens_to_remove, self.logical):
            raise UnsupportedCombination("a quantized cache cannot forget its last columns: use a dynamic cache")


class ResidualSlots(QuantizedSlots):
    """Mixed in front of a layer whose newest states wait in full precision until they are many, and are quantized then."""

    residual_length: int
    axis_key: int
    axis_value: int
    _pending_beam_idx: Any

    @property
    def fixed_slots(self) -> int:
        """Those that are quantized."""
        return self.slots - self._waiting

    @property
    def _waiting(self) -> int:
        """States in full precision."""
        keys: Tensor | None = self.keys
        return keys.shape[-2] if keys is not None and keys.dim() == 4 else 0

    def dirty(self, arriving: int, clean_every: int) -> bool:
        """Before states would be quantized, if any that wait were judged."""
        return self.loose > 0 and self._waiting > 0 and self._waiting + arriving >= self.residual_length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the arriving states. Under a gate the newest ones wait: they may be rejected, and are still seen."""
        places = None if self._announced is None else self._announced.places
        most, waiting = self.residual_length, self._waiting + key_states.shape[-2]
        if places is None or waiting < most or not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.residual_length = waiting + 1  # so that transformers' layer keeps all of them as they are
        try:
            out = super().update(key_states, value_states, *args, **kwargs)
        finally:
            self.residual_length = most
        self._quantize_all_but(min(waiting, max(places.recent, key_states.shape[-2])), *out)
        return out

    def _quantize_all_but(self, newest: int, keys: Tensor, values: Tensor) -> None:
        """Quantize all of the states [B, H, P, D] but the newest ones."""
        if newest == self._waiting:
            return
        split = keys.shape[-2] - newest
        self._quantized_keys = self._quantize(keys[..., :split, :].contiguous(), axis=self.axis_key)  # type: ignore[attr-defined]
        self._quantized_values = self._quantize(values[..., :split, :].contiguous(), axis=self.axis_value)  # type: ignore[attr-defined]
        self.keys, self.values = keys[..., split:, :].contiguous(), values[..., split:, :].contiguous()
        self._pending_beam_idx = None  # is in what was quantized now


class SlotQuantoLayer(ResidualSlots, QuantoQuantizedLayer):
    """Group-wise integers of optimum-quanto."""


class SlotHQQLayer(ResidualSlots, HQQQuantizedLayer):
    """Group-wise integers of HQQ."""


class SlotFp8Layer(QuantizedSlots, compat.FP8_LAYER or DynamicLayer):  # type: ignore[misc]
    """8-bit floating point. Never used where transformers has no such layer."""

    def keep_slots(self, index: Tensor) -> None:
        """Keep the keys and values of the slots `index` [B, K]; one scale holds for all."""
        (keys, key_scale), (values, value_scale) = self._quantized_keys, self._quantized_values
        self._quantized_keys = _taken(keys, index), key_scale
        self._quantized_values = _taken(values, index), value_scale


def _taken(stored: Tensor, index: Tensor) -> Tensor:
    """As `take` along the slots; 8-bit floats are moved as bytes, for which every device has a kernel."""
    if stored.element_size() > 1:
        return take(stored, index, 2)
    return take(stored.view(torch.uint8), index, 2).view(stored.dtype)
