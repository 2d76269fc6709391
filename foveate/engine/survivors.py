"""What is left of the columns of one pass. Stages change it through its own methods, and through nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveate.core.layout import Layout
from foveate.engine.projection import Alive, take
from foveate.engine.spans import Span, spans_of


@dataclass
class Survivors:
    """The columns of a pass that stages have left. Tensors are on the device.

    Attributes:
        layout: roles and media of the columns.
        first_medium: key of the pass's first medium in the trace.
        real: [B, S] bool, False at padding.
        dead: [B, S] bool, True at columns that stages removed.
        lengths: surviving columns per row.
        spans: the surviving visual tokens, by frame, medium or row, as the last stage ranked them.
        alive: the tokens that reach the current layer, None for all columns.
        shortened: every `alive` of the pass with the layer it starts at, in order, to scatter captured hidden states back.
        hidden: [B, past + S] bool, True at key columns that a MASK stage hides; None without one.
    """

    layout: Layout
    first_medium: int
    real: Tensor
    dead: Tensor
    lengths: list[int]
    spans: list[Span]
    alive: Alive | None = None
    shortened: list[tuple[int, Alive]] = field(default_factory=list)
    hidden: Tensor | None = None

    @classmethod
    def of(cls, layout: Layout, first_medium: int, device: torch.device, by_piece: bool) -> Survivors:
        """Everything that a layout describes; uploads are not waited for.

        `by_piece` starts with one span per frame or crop, for plans whose first stage ranks within those.
        """
        real = layout.real.to(device, non_blocking=True)
        spans = [
            span
            for key, medium in enumerate(layout.media, start=first_medium)
            for span in spans_of(medium, key, device, by_piece, bool(layout.ends[medium.row, medium.columns[-1]]))
        ]
        return cls(layout, first_medium, real, torch.zeros_like(real), layout.real.sum(1).tolist(), spans)

    def regroup(self, spans: list[Span]) -> None:
        """The same tokens in other groups."""
        self.spans = spans

    def keep_of(self, spans: Sequence[Span], rows: Tensor, columns: Tensor, kept: Tensor) -> None:
        """Of groups of equal size keep some tokens.

        Args:
            spans: G groups.   rows: [G, 1] their batch rows.   columns: [G, N] their columns.   kept: [G, K] which stay.
        """
        # Every token of these groups is marked, then the kept ones are unmarked: no boolean indexing, so no sync.
        self.dead[rows, columns] = True
        self.dead[rows, columns.gather(1, kept)] = False
        for span in spans:
            self.lengths[span.row] -= span.count - kept.shape[1]

    def leave(self, gone: Tensor, spans: Sequence[Span]) -> None:
        """Remove columns `gone` [B, S] of visual tokens; `spans` are what is left of the groups, in their order."""
        self.dead |= gone
        for before, after in zip(self.spans, spans, strict=True):
            self.lengths[before.row] -= before.count - after.count
        self.spans = [span for span in spans if span.count]

    def remove(self, gone: Tensor) -> None:
        """Remove columns `gone` [B, S] whose number nobody knows: counting waits for the device."""
        self.dead = self.dead | gone
        self.lengths = (self.real & ~self.dead).sum(1).tolist()

    def hide(self, hidden: Tensor) -> None:
        """Hide key columns [B, past + S] from the later layers."""
        self.hidden = hidden

    def shorten(self, layer: int, states: Tensor) -> Tensor:
        """Gather the surviving tokens' states [B, n, D] from a layer on; shorter rows have holes on the side of the padding."""
        before = self.alive
        alive = Alive.of(self.real & ~self.dead, self.lengths, self.layout.pads_right)
        slots = alive.index if before is None else before.slot_of.gather(1, alive.index)
        self.alive = alive
        self.shortened.append((layer, alive))
        return take(states, slots, 1)

    def alive_at(self, layer: int) -> Alive | None:
        """The tokens that reached a layer, None for all columns."""
        reached = [alive for start, alive in self.shortened if start <= layer]
        return reached[-1] if reached else None
