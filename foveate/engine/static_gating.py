"""Static cache layers under a gate: the slot of a token that is not stored is used again by a later one.

So fewer slots are reserved. Each row has its own free slots; that slots are no longer in the order of columns matters to
nobody, for masks go by column.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import StaticLayer

from foveate.engine.projection import take
from foveate.engine.slots import Places, SlotLayer, columns_of
from foveate.errors import UnsupportedCombination

# The reservation of a pruned layer is rounded up to this many slots: prompts that prune about as much then share one shape,
# and with it one compiled decode step.
RESERVED_IN_STEPS = 256


class ReusedSlots(SlotLayer):
    """What a static layer does under a gate.

    Attributes:
        columns: the layer of column numbers, [B, 1, P, 1] long, one more than the (marked) column; 0 where nothing is stored.
        reserved: columns that the plain layer would have room for.
        used: under a gate, no row uses more slots than so many; None before it is known.
    """

    columns: StaticLayer
    max_cache_len: int
    reserved: int
    used: int | None = None

    def _reserve(self, arriving: int, columns: int) -> None:
        raise NotImplementedError

    def _count_from(self, batch: int, device: torch.device) -> None:
        raise NotImplementedError

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Of transformers' layer, which comes later in the order of classes."""
        super().lazy_initialization(key_states, value_states)  # type: ignore[misc]

    def _in_steps(self, needed: int) -> int:
        return min(self.reserved, -(-needed // RESERVED_IN_STEPS) * RESERVED_IN_STEPS)

    def make_room(self, arriving: Tensor, past: int, columns: int, recent: int) -> None:
        """Before `places`: reserve slots, or add some. Waits for the device about once in as many steps as slots are free."""
        batch, count = arriving.shape
        if not self.columns.is_initialized:
            self._reserve(count, columns)
            self._count_from(batch, arriving.device)
        if self.is_sliding:
            return  # a window has room for what a query sees, and chooses among more
        if self.used is None or self.used + count > self.max_cache_len:
            self.used = int((~self._free(self.positions(batch, arriving.device), past, recent)).sum(1).max())
        self.used += count
        if self.used > self.max_cache_len:
            self._grow(self.used)

    def _free(self, marked: Tensor, past: int, recent: int) -> Tensor:
        """[B, P] bool: slots with these marked columns that neither column `past` nor a later one sees."""
        columns = columns_of(marked)
        free = (marked == -1) | ((marked <= -2) & (past - columns >= recent))
        return free | (columns <= past - self.max_cache_len) if self.is_sliding else free

    def _grow(self, needed: int) -> None:
        """Add slots until there are `needed` ones, in steps."""
        if needed > self.reserved:
            raise UnsupportedCombination(f"this static cache has room for {self.reserved} columns: raise its max_cache_len")
        larger = self._in_steps(needed)
        more = (0, 0, 0, larger - self.max_cache_len)
        self.columns.keys = functional.pad(self.columns.keys, more)
        if self.is_initialized:
            self.keys, self.values = functional.pad(self.keys, more), functional.pad(self.values, more)
        self.max_cache_len = self.columns.max_cache_len = larger

    def places(self, arriving: Tensor, past: int, columns: int, recent: int) -> Places:
        """In each row's first free slots. Where several may not fit into a window, those that later ones see stay."""
        batch, count = arriving.shape
        before = self.positions(batch, arriving.device)
        if self.is_sliding and count > 1:
            both = torch.cat([before, arriving], dim=1)
            gone = self._free(both, past + columns, recent)
            index = torch.argsort(gone.to(torch.uint8), dim=1, stable=True)[:, : self.max_cache_len]
            return Places(both.gather(1, index), both, recent, index, joins=True)
        free = self._free(before, past, recent).to(torch.uint8)
        index = (
            free.argmax(1, keepdim=True) if count == 1 else torch.argsort(free, dim=1, stable=True, descending=True)[:, :count]
        )
        after = before.scatter(1, index, arriving)
        return Places(after, after, recent, index)

    def _store(self, places: Places, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Store what arrives under a gate; returns the keys and values that `places.seen` describes."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert places.index is not None
        index = places.index.to(key_states.device)
        if places.joins:
            both = torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
            self.keys.copy_(take(both[0], index, 2))
            self.values.copy_(take(both[1], index, 2))
            return both
        for stored, states in ((self.keys, key_states), (self.values, value_states)):
            stored.scatter_(2, index[:, None, :, None].expand_as(states), states)
        return self.keys, self.values
