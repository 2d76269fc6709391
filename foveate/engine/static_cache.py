"""Static cache layers that hold fewer slots than columns, for compiled decoding: everything they count with is a tensor.

Which columns the slots hold is itself kept in a cache layer of the same kind, whose "keys" are column numbers: whatever
transformers does to keys (write at an offset, roll a full window), the column numbers go through too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from foveate.engine.slots import PRUNED_WITHOUT_PLAN, REORDERED, Announcement
from foveate.engine.static_gating import ReusedSlots
from foveate.errors import AttachError, UnsupportedCombination


class StaticSlots(ReusedSlots):
    """Mixed in front of a static cache layer. Must be told what arrives (`announce`) before each `update`.

    Attributes:
        columns: the layer of column numbers, [B, 1, P, 1] long, one more than the (marked) column; 0 where nothing is stored.
        logical: tensor, columns so far.
    """

    device: torch.device
    cumulative_length: Tensor
    logical: Tensor
    cache = "static"
    forgets = True
    compiles = True
    is_croppable = False
    masks = False
    all_valid = False  # there are empty slots after the last token
    pad_free = False
    _visible: Tensor

    def begin(self) -> None:
        """Take over a layer that may hold states already."""
        self.reserved, self.lineage, self._announced = self.max_cache_len, 0, None
        self.columns = self._plain_columns()
        self.logical = torch.zeros_like(self.cumulative_length)
        if self.is_initialized:
            self._count_from(self.keys.shape[0], self.keys.device)
            self._take_over()

    def _plain_columns(self) -> StaticLayer:
        return StaticLayer(self.max_cache_len)

    def _take_over(self) -> None:
        written = self.cumulative_length.to(self.device)
        order = torch.arange(self.max_cache_len, device=self.device)
        self.columns.keys.copy_(torch.where(order < written, order + 1, 0)[None, None, :, None])
        self.columns.cumulative_length.copy_(written)
        self.logical.copy_(written)

    def _count_from(self, batch: int, device: torch.device) -> None:
        """Make the tensors of an empty layer."""
        empty = torch.zeros(batch, 1, 0, 1, dtype=torch.long, device=device)
        self.columns.lazy_initialization(empty, empty[..., :0])
        self.logical = self.logical.to(device)
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(self.logical)

    @property
    def slots(self) -> int:
        """Slots that `update` returns; some may be empty."""
        return int(self.max_cache_len)

    @property
    def room(self) -> int | None:
        """Columns that there is room for."""
        return int(self.reserved)

    def positions(self, batch: int, device: torch.device) -> Tensor:
        """[B, P] column of every stored slot, -1 for an empty one or a hole; rejected ones are marked."""
        if not self.columns.is_initialized:
            return torch.full((batch, self.max_cache_len), -1, device=device)
        stored: Tensor = self.columns.keys[:, 0, :, 0].to(device) - 1
        return stored

    def visible_positions(self, new: Tensor) -> Tensor:
        """Columns of the keys that the `update` that was announced will return."""
        return self._visible

    def announce(self, announcement: Announcement, batch: int, device: torch.device) -> None:
        """Say what arrives with the next `update`."""
        if announcement.places is not None:
            self.columns.keys.copy_(announcement.places.after[:, None, :, None] + 1)
            self._descend(announcement.lineage)
            self._announced, self.gated = announcement, True
            return
        arriving = announcement.columns if announcement.positions is None else announcement.positions.shape[1]
        if not self.is_initialized and not self.columns.is_initialized:
            self._reserve(arriving, announcement.columns)
            self._count_from(batch, device)
        if announcement.positions is None:
            new = (self.logical + torch.arange(arriving, device=device)).expand(batch, -1)
        else:
            new = announcement.positions
            self._descend(announcement.lineage)
        numbers = new[:, None, :, None] + 1
        returned, _ = self.columns.update(numbers, numbers[..., :0])
        self._visible = returned[:, 0, :, 0] - 1
        self._announced = announcement

    def _reserve(self, arriving: int, columns: int) -> None:
        """Reserve slots for what arrives and for as many columns as the plain layer would still have room for, but for those
        that a gate will spare: from then on states go where a slot is free, and slots are added where it spares fewer.
        """
        self.gated = self.spare > 0
        needed = self.reserved - columns + arriving
        self.ungated_slots, self.max_cache_len = self._in_steps(needed), self._in_steps(needed - self.spare)
        self.columns = self._plain_columns()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the arriving states; returns all slots, empty ones too."""
        announced, self._announced = self._announced, None
        if announced is None:
            raise AttachError(PRUNED_WITHOUT_PLAN)
        if announced.places is None:
            out: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
        else:
            out = self._store(announced.places, key_states, value_states)
        self.logical.add_(announced.columns)
        return out

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a pruned static layer cannot forget its last columns."""
        if tokens_to_remove:
            raise UnsupportedCombination("a pruned static cache cannot forget its last columns: use a dynamic cache")

    def get_seq_length(self) -> Any:
        """Columns, not slots."""
        return self.logical if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset of the mask that transformers makes, in columns."""
        return self.reserved, 0

    def get_max_length(self) -> int:
        """Columns that there is room for."""
        return self.reserved

    get_max_cache_shape = get_max_length  # its name before transformers 5.17

    def first_key(self, queries: int) -> int | None:
        """The column of the first key of the mask that transformers makes."""
        return self.get_mask_sizes(queries)[1]

    def reset(self) -> None:
        """Empty the layer. The next prompt may prune less, so its reservation is given back too."""
        super().reset()  # type: ignore[misc]
        self.is_initialized, self.max_cache_len, self.lineage = False, self.reserved, 0
        self.gated, self.used, self.spare = False, None, 0
        self.columns = self._plain_columns()
        self.logical.zero_()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Permute rows, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.columns.reorder_cache(beam_idx)
        self._descend(REORDERED)


class SlotStaticLayer(StaticSlots, StaticLayer):
    """A full-attention layer."""


class SlotStaticSlidingLayer(StaticSlots, StaticSlidingWindowLayer):
    """A sliding-window layer: holds the last slots; which of them a query may see, the projected mask says."""

    logical_int: int  # a tensor would be read on the host for every mask

    def begin(self) -> None:
        """Take over a layer that may hold states already."""
        self.logical_int = self.cumulative_length_int
        super().begin()

    def _plain_columns(self) -> StaticLayer:
        return StaticSlidingWindowLayer(self.max_cache_len, self.max_cache_len)

    def _take_over(self) -> None:
        columns = self.columns
        assert isinstance(columns, StaticSlidingWindowLayer)
        order = torch.arange(self.max_cache_len, device=self.device)
        first = max(self.logical_int - self.max_cache_len, 0)
        columns.keys.copy_(torch.where(order < self.logical_int, first + order + 1, 0)[None, None, :, None])
        columns.cumulative_length.copy_(self.cumulative_length)
        columns.cumulative_length_int = self.cumulative_length_int
        self.logical.fill_(self.logical_int)

    def _reserve(self, arriving: int, columns: int) -> None:
        """A window is small: its reservation stays."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the arriving states; returns all that a query may see."""
        arrived = 0 if self._announced is None else self._announced.columns
        out = super().update(key_states, value_states, *args, **kwargs)
        self.logical_int += arrived
        return out

    def get_seq_length(self) -> int:
        """Columns, not slots."""
        return self.logical_int

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As the plain layer, whose running length counts columns."""
        plain = StaticSlidingWindowLayer(self.max_cache_len, self.max_cache_len)
        plain.cumulative_length_int = self.logical_int
        sizes: tuple[int, int] = plain.get_mask_sizes(query_length)
        return sizes

    def reset(self) -> None:
        """Empty the layer."""
        super().reset()
        self.logical_int = 0
