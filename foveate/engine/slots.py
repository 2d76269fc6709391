"""Cache layers that store fewer slots than the columns they report.

Everything outside a decoder layer (positions, masks, generate) asks a cache for its length and must hear the number of
columns; the layer itself stores only the survivors. A slot layer answers both: `logical` columns, and for every slot the
column it holds, -1 for a hole.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

# Lineages: of a layer that no stage has touched, and the step of a reordering.
PLAIN, REORDERED = 0, 1
PRUNED_WITHOUT_PLAN = (
    "this KV cache was pruned by foveate, but no plan is attached to the model that continues it: "
    "attach the plan again, or start from an empty cache"
)


class Announcement:
    """What the hook in front of a layer tells its cache layer about the states that are about to arrive.

    Attributes:
        positions: [B, n] column of each arriving state, -1 for a hole; None if they are the next columns in a row.
        columns: how many columns the arriving states stand for.
        all_valid: whether `positions` holds no -1.
        lineage: equal numbers mean equal slots: layers after the same stages share it, so masks are built once.
        after: [B, P] columns of all slots once these states are stored, those that a gate rejected marked (`gate.mark`);
            None where nothing is gated.
    """

    __slots__ = ("after", "all_valid", "columns", "lineage", "positions")

    def __init__(
        self, positions: Tensor | None, columns: int, all_valid: bool, lineage: int, after: Tensor | None = None
    ) -> None:
        self.positions, self.columns, self.all_valid, self.lineage = positions, columns, all_valid, lineage
        self.after = after


class SlotLayer:
    """Mixed in front of a cache layer. Must be told what arrives (`announce`) before each `update`.

    Class attributes, what a kind of cache can do:
        cache: what `generate(cache_implementation=...)` calls it.
        forgets: it can forget single tokens, as gates need.
        compiles: its slots are reserved, so that decode steps can be compiled; some are empty.
        masks: effect=mask can choose among its slots anew at each step.
        measurable: the bytes of its keys and values can be read.

    Attributes:
        gated: slots among it were judged by a gate.
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

    def first_key(self, queries: int) -> int | None:
        """The column of the first key of the mask that transformers makes, None if it ends with the last column."""
        return None

    def _descend(self, step: int) -> None:
        # One number and not a list of steps: a long beam search reorders at every step.
        self.lineage = hash((self.lineage, step))
