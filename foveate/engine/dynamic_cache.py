"""Dynamic cache layers whose slots come and go with the tokens."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from foveate.engine import compat
from foveate.engine.projection import pack, take
from foveate.engine.slots import PLAIN, PRUNED_WITHOUT_PLAN, REORDERED, Announcement, Places, SlotLayer, columns_of
from foveate.errors import AttachError

# Negative numbers: lineages of a layer of its own.
_own_lineage = count(-1, -1)


class DynamicSlots(SlotLayer):
    """Mixed in front of a dynamic cache layer: slots come and go with the tokens."""

    # Columns [B, P0] of the first P0 slots, -1 for a hole; the `_tail` slots after them hold the last columns in a row.
    # So a decode step only counts; tensors are built when somebody asks.
    _prefix: Tensor | None
    _tail: int
    logical: int
    # Tokens that arrived under a gate since its rejected slots were last taken away.
    loose: int = 0
    cache = "dynamic"
    forgets = True

    def begin(self) -> None:
        """Take over a layer that may hold states already: its slots are its last columns."""
        self._prefix, self._tail, self._announced = None, self.slots, None
        self.logical = super().get_seq_length()  # type: ignore[misc]
        self.all_valid, self.pad_free, self.lineage = True, self._tail == 0, PLAIN

    @property
    def slots(self) -> int:
        """Stored slots."""
        stored = self.is_initialized and self.keys is not None and self.keys.numel() > 0
        return self.keys.shape[-2] if stored else 0

    @property
    def lasting_slots(self) -> int:
        """Slots of the fullest row once those that a gate rejected are taken away. Waits for the device."""
        if self._prefix is None or not bool((self._prefix <= -2).any()):
            return self.slots
        return int((self._prefix >= 0).sum(1).max()) + self._tail

    def positions(self, batch: int, device: torch.device) -> Tensor:
        """[B, P] column of every stored slot, -1 for a hole."""
        tail = torch.arange(self.logical - self._tail, self.logical, device=device).expand(batch, -1)
        return tail if self._prefix is None else torch.cat([self._prefix.to(device), tail], dim=1)

    def visible_positions(self, new: Tensor) -> Tensor:
        """Columns of the keys that `update` will return for arriving columns `new` [B, n]."""
        return self.cut(torch.cat([self.positions(new.shape[0], new.device), new], dim=1), new.shape[1])

    def cut(self, columns: Tensor, arriving: int) -> Tensor:
        """Of the columns [B, P] of stored and arriving states those whose keys `update` will return."""
        return columns

    def announce(self, announcement: Announcement, batch: int, device: torch.device) -> None:
        """Say what arrives with the next `update`."""
        self._announced = announcement

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the arriving states; returns the keys and values to attend to."""
        announced, self._announced = self._announced, None
        if announced is None:
            raise AttachError(PRUNED_WITHOUT_PLAN)
        arriving = key_states.shape[-2]
        if announced.places is not None:
            self._prefix, self._tail, self.all_valid, self.gated = announced.places.after, 0, False, True
            self.loose += arriving
            self._descend(announced.lineage)
        elif announced.positions is not None:
            new = announced.positions
            self._prefix, self._tail = torch.cat([self.positions(new.shape[0], new.device), new], dim=1), 0
            self.all_valid = self.all_valid and announced.all_valid
            self._descend(announced.lineage)
        else:
            self._tail += arriving
            self.pad_free = self.pad_free and arriving == 1
        out: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
        self._advance(announced.columns)
        return out

    def _advance(self, columns: int) -> None:
        self.logical += columns
        known = 0 if self._prefix is None else self._prefix.shape[1]
        gone = known + self._tail - self.slots  # a sliding window let the oldest slots go
        if gone > 0 and self._prefix is not None:
            self._prefix = self._prefix[:, gone:]
        self._tail -= max(0, gone - known)

    def get_seq_length(self) -> int:
        """Columns, not slots."""
        return self.logical

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset of the mask that transformers makes, in columns."""
        return self.logical + query_length, 0

    def evict(self, keep: Tensor) -> None:
        """Forget slots. `keep`: [B, P] bool. Rows become right-aligned; shorter rows get holes on the left."""
        positions = self.positions(keep.shape[0], keep.device)
        keep = keep & (positions != -1)
        lengths = keep.sum(1).tolist()
        index, valid = pack(keep, lengths)
        self.keys, self.values = take(self.keys, index, 2), take(self.values, index, 2)
        self._prefix, self._tail = torch.where(valid, positions.gather(1, index), -1), 0
        self.all_valid, self.lineage = min(lengths) == max(lengths) and not self.gated, next(_own_lineage)

    def places(self, arriving: Tensor, past: int, columns: int, recent: int) -> Places:
        """Behind all that is stored."""
        after = torch.cat([self.positions(arriving.shape[0], arriving.device), arriving], dim=1)
        return Places(after, self.cut(after, arriving.shape[1]), recent)

    def dirty(self, arriving: int, clean_every: int) -> bool:
        """Once so many tokens arrived under a gate."""
        return self.loose >= clean_every

    def repack(self, index: Tensor, positions: Tensor, step: int) -> None:
        """Keep the slots `index` [B, K], which hold `positions` [B, K], for a gate; `step` names the same for other layers."""
        self.keep_slots(index)
        self._prefix, self._tail, self.loose = positions, 0, 0
        self._descend(step)

    def keep_slots(self, index: Tensor) -> None:
        """Keep the keys and values of the slots `index` [B, K]."""
        self.keys, self.values = take(self.keys, index, 2), take(self.values, index, 2)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns; `tokens_to_remove` is negative, as transformers passes it."""
        removed = compat.columns_to_crop(tokens_to_remove, self.logical)
        if removed == 0:
            return
        positions = self.positions(self.keys.shape[0], self.keys.device)
        self.logical -= removed
        if self._tail >= removed:
            self.keys, self.values = self.keys[..., :-removed, :], self.values[..., :-removed, :]
            self._tail -= removed
        else:
            self._prefix, self._tail = positions, 0
            self.evict(columns_of(positions) < self.logical)

    def reset(self) -> None:
        """Empty the layer."""
        super().reset()  # type: ignore[misc]
        self._prefix, self._tail, self.logical = None, 0, 0
        self.all_valid, self.pad_free, self.lineage, self.loose, self.gated = True, True, PLAIN, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Permute rows, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        if self._prefix is not None:
            self._prefix = self._prefix.index_select(0, beam_idx.to(self._prefix.device))
            self._descend(REORDERED)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat rows."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self._prefix is not None:
            self._prefix = self._prefix.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Choose rows."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        if self._prefix is not None:
            self._prefix = self._prefix[indices]


class SlotDynamicLayer(DynamicSlots, DynamicLayer):
    """A full-attention layer."""


class SlotSlidingLayer(DynamicSlots, DynamicSlidingWindowLayer):
    """A sliding-window layer: keeps the last window - 1 slots; which of them a query may see, the projected mask says."""

    def cut(self, columns: Tensor, arriving: int) -> Tensor:
        """Recording layers cut what they return to the window."""
        if compat.records_past(self) and compat.RECORDED_PAST_IS_CUT:
            return columns[:, -(self.sliding_window - 1 + arriving) :]
        return columns

    def _advance(self, columns: int) -> None:
        super()._advance(columns)
        self.cumulative_length = self.logical

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As the plain layer: its running length counts columns here too."""
        sizes: tuple[int, int] = DynamicSlidingWindowLayer.get_mask_sizes(self, query_length)
        return sizes

    def crop(self, tokens_to_remove: int) -> None:
        """Refused once pruned: which slots a window let go cannot be undone."""
        if self._prefix is None:
            DynamicSlidingWindowLayer.crop(self, tokens_to_remove)
            self.logical, self._tail = self.cumulative_length, self.slots
            return
        if self.logical >= self.sliding_window and not compat.records_past(self):
            raise RuntimeError("crop needs activate_past_recording once the window is full")
        super().crop(tokens_to_remove)
        self.cumulative_length = self.logical
