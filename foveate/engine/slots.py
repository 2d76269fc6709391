"""Cache layers that store fewer slots than the columns they report.

Everything outside a decoder layer (positions, masks, generate) asks a cache for its length and must hear the number of
columns; the layer itself stores only the survivors. A slot layer answers both: `logical` columns, and for every slot the
column it holds, -1 for a hole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

# Lineages: of a layer that no stage has touched, and the step of a reordering.
PLAIN, REORDERED = 0, 1
PRUNED_WITHOUT_PLAN = (
    "this KV cache was pruned by foveate, but no plan is attached to the model that continues it: "
    "attach the plan again, or start from an empty cache"
)


def mark(columns: Tensor, rejected: Tensor) -> Tensor:
    """Columns [B, n] with those that a gate rejected marked: -2 minus the column. (-1 is a hole.)"""
    return torch.where(rejected & (columns >= 0), -2 - columns, columns)


def columns_of(marked: Tensor) -> Tensor:
    """Columns [B, P] of marked ones; -1 stays a hole."""
    return torch.where(marked <= -2, -2 - marked, marked)


@dataclass(frozen=True)
class Places:
    """Where a gated pass stores what arrives.

    Attributes:
        after: [B, P] marked columns (`mark`) of all slots once it is stored.
        seen: [B, V] marked columns of the keys that `update` will return.
        recent: so many of the last columns are visible whatever was decided, the newest included.
        index: of a layer whose slots are reserved, the slots [B, n] that are written; with `joins` the slots [B, P] that stay,
            of the stored and the arriving ones behind each other.
        joins: whether arriving states take more slots than are free, so that stored and arriving ones are chosen together.
    """

    after: Tensor
    seen: Tensor
    recent: int
    index: Tensor | None = None
    joins: bool = False


class Announcement:
    """What the hook in front of a layer tells its cache layer about the states that are about to arrive.

    Attributes:
        positions: [B, n] column of each arriving state, -1 for a hole; None if they are the next columns in a row.
        columns: how many columns the arriving states stand for.
        all_valid: whether `positions` holds no -1.
        lineage: equal numbers mean equal slots: layers after the same stages share it, so masks are built once.
        places: where a gate has them stored; None where nothing is gated.
    """

    __slots__ = ("all_valid", "columns", "lineage", "places", "positions")

    def __init__(
        self, positions: Tensor | None, columns: int, all_valid: bool, lineage: int, places: Places | None = None
    ) -> None:
        self.positions, self.columns, self.all_valid, self.lineage = positions, columns, all_valid, lineage
        self.places = places


class SlotLayer:
    """Mixed in front of a cache layer. Must be told what arrives (`announce`) before each `update`.

    Class attributes, what a kind of cache can do:
        cache: what `generate(cache_implementation=...)` calls it.
        forgets: it can leave out single tokens of an answer, as gates need.
        compiles: its slots are reserved, so that decode steps can be compiled (never those of a gate); some are empty.
        masks: effect=mask can choose among its slots anew at each step.
        measurable: the bytes of its keys and values can be read.

    Attributes:
        gated: slots among it were judged by a gate, or are reserved for what a gate will store.
        ungated_slots: of a layer that reserves its slots, as many as it would have without a gate.
        all_valid: no hole among the slots.
        pad_free: no slot holds a padding column.
        lineage: equal numbers mean equal slots.
    """

    cache: ClassVar[str] = ""
    forgets: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    masks: ClassVar[bool] = True
    measurable: ClassVar[bool] = True

    keys: Tensor
    values: Tensor
    is_initialized: bool
    is_sliding: bool
    all_valid: bool
    pad_free: bool
    lineage: int
    gated: bool = False
    ungated_slots: int = 0
    spare: int = 0  # slots that need not be reserved, since a gate will not store so many tokens
    lent_mask: Any = None  # at a compiled step, the mask of this layer, for decoder layers that read its keys too
    _announced: Announcement | None

    def begin(self) -> None:
        """Take over a layer that may hold states already."""
        raise NotImplementedError

    @property
    def slots(self) -> int:
        """Slots that hold states, or could."""
        raise NotImplementedError

    @property
    def room(self) -> int | None:
        """Columns that slots are reserved for ahead, None where slots come with the tokens."""
        return None

    @property
    def lasting_slots(self) -> int:
        """Slots of the fullest row once those that a gate rejected are taken away."""
        return self.slots

    def positions(self, batch: int, device: torch.device) -> Tensor:
        """[B, P] column of every stored slot, -1 for a hole."""
        raise NotImplementedError

    def visible_positions(self, new: Tensor) -> Tensor:
        """Columns of the keys that `update` will return for arriving columns `new` [B, n], once they are announced."""
        raise NotImplementedError

    def announce(self, announcement: Announcement, batch: int, device: torch.device) -> None:
        """Say what arrives with the next `update`."""
        raise NotImplementedError

    def make_room(self, arriving: Tensor, past: int, columns: int, recent: int) -> None:
        """Before `places`: see to it that the states of a gated pass have slots.

        Args:
            arriving: [B, n] their marked columns.   past, columns: columns before the pass and in it.   recent: as of `Places`.
        """

    def places(self, arriving: Tensor, past: int, columns: int, recent: int) -> Places:
        """Where the states of a gated pass go; arguments as of `make_room`."""
        raise NotImplementedError

    def dirty(self, arriving: int, clean_every: int) -> bool:
        """Whether rejected slots are to be taken away (`repack`) before `arriving` states come."""
        return False

    @property
    def fixed_slots(self) -> int:
        """The first so many slots are never taken away."""
        return 0

    def repack(self, index: Tensor, positions: Tensor, step: int) -> None:
        """Of the slots that are not fixed keep `index` [B, K]; all hold `positions` [B, P] then; `step` names it for others."""
        raise NotImplementedError

    def first_key(self, queries: int) -> int | None:
        """The column of the first key of the mask that transformers makes, None if it ends with the last column."""
        return None

    def _descend(self, step: int) -> None:
        # One number and not a list of steps: a long beam search reorders at every step.
        self.lineage = hash((self.lineage, step))
