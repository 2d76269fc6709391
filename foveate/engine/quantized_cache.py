"""Quantized cache layers that store fewer slots than the columns they report.

What a stage removes is never stored, so the layer is shorter as well as narrower. What is stored stays: slots that were
quantized together cannot be told apart again.
"""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import DynamicLayer, HQQQuantizedLayer, QuantoQuantizedLayer

from foveate.engine import compat
from foveate.engine.dynamic_cache import DynamicSlots
from foveate.errors import UnsupportedCombination


class QuantizedSlots(DynamicSlots):
    """Mixed in front of a quantized cache layer: what a stage removes is never stored; what is stored stays."""

    cache = "quantized"
    forgets = False
    measurable = False

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


class SlotQuantoLayer(QuantizedSlots, QuantoQuantizedLayer):
    """Group-wise integers of optimum-quanto."""


class SlotHQQLayer(QuantizedSlots, HQQQuantizedLayer):
    """Group-wise integers of HQQ."""


class SlotFp8Layer(QuantizedSlots, compat.FP8_LAYER or DynamicLayer):  # type: ignore[misc]
    """8-bit floating point. Never used where transformers has no such layer."""
