"""What lives for one call of a vision encoder, and what is left of each picture when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from foveate.core.selection import Selection
from foveate.core.view import Observation


@dataclass(frozen=True)
class EncodedRow:
    """One image, crop or frame that passed the encoder.

    Attributes:
        count: units at first.
        units: [m] long, numbers of those that are left, ascending, in raster order.
        sizes: [m] fp32, how many original units each of them stands for.
        stages: (text of the stage, its answer, row of this one in it, units it chose from), in order.
        observed: what stages of the decoder asked for, [count, ...] fp32 each, of all units; zeros where one was gone.
    """

    count: int
    units: Tensor
    sizes: Tensor
    stages: list[tuple[str, Selection, int, int]]
    observed: Mapping[Observation, Tensor] = field(default_factory=dict)


@dataclass
class EncoderCall:
    """One call of an encoder.

    Attributes:
        rows: for each image, crop or frame a number, the same alone and in company, and whether its last token asks.
        observed: what was measured, by the layer of the stage that asked, for each patch that was left then; by None what
            stages of the decoder asked for, for each patch there ever was.
    """

    rows: list[tuple[int, bool]]
    observed: dict[tuple[int | None, Observation], Tensor] = field(default_factory=dict, kw_only=True)


@dataclass
class Encoded(EncoderCall):
    """One call of an encoder whose rows are images, crops or frames.

    Attributes:
        units: [B, m] units that are left, ascending; all of them at first.
        sizes: [B, m] fp32, how many original units each stands for.
        patches: [B, n] patches that are left, ascending; None while all are.
        bias: [B, 1, 1, prefix + n] log of the size of each key, where attention is to weigh sizes; else None.
        mask: the layers' attention mask, the `patches` it was made shorter for, and what came out; None where there is none.
        states: by number of patches, which ones a hidden state of that length holds.
        selections: (text of the stage, its answer, units it chose from), in order.
        emptied: [B, n] bool, tokens that are gone where the encoder's output was pooled; None where it was not.
    """

    units: Tensor
    sizes: Tensor
    patches: Tensor | None = None
    bias: Tensor | None = None
    mask: tuple[Any, Tensor, Any] | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    selections: list[tuple[str, Selection, int]] = field(default_factory=list)
    emptied: Tensor | None = None

    def gone(self, count: int, device: torch.device) -> Tensor:
        """[B, count] bool, units that are not left."""
        gone = torch.ones(len(self.units), count, dtype=torch.bool, device=device)
        return gone.scatter(1, self.units.to(device), False)

    @property
    def changed(self) -> bool:
        """Whether a token is gone, or was sent through gathering to prove that this changes nothing."""
        return self.patches is not None


@dataclass
class Frame:
    """One image or one frame of a video inside the packed sequence, in units (squares of patches).

    Attributes:
        grid: (h, w) in units.
        order: [h * w] long, place in the packed sequence of each unit of the raster, at full length.
        left: [m] long, raster numbers of the units that are left, ascending.
        sizes: [m] fp32, how many original units each stands for.
        first: number of its first unit in the order in which pixels come.
        selections: (text of the stage, answer, row of this frame in it, units it chose from), in order.
    """

    grid: tuple[int, int]
    order: Tensor
    left: Tensor
    sizes: Tensor
    first: int = 0
    selections: list[tuple[str, Selection, int, int]] = field(default_factory=list)

    @property
    def places(self) -> Tensor:
        """[m] place, at full length, of each unit that is left."""
        return self.order[self.left]


@dataclass
class Packed(EncoderCall):
    """One call of a packed encoder.

    Attributes:
        frames: its images and frames, in order.
        unit: patches of a unit.
        units: units at full length.
        left: [n] places of the units that are left, ascending; None while all are.
        cuts: boundaries of windows and of sequences among those that are left, by whether they are windows, each with the
            longest one.
        rotary: the rotary embeddings transformers gave, and those of the patches that are left.
        members: [units, unit] rows of each unit's patches at full length; None where they are consecutive.
        mask: the layers' attention mask, the `left` it was made shorter for, and what came out; None where there is none.
        states: by number of patches, which rows a hidden state of that length holds.
        pixels: [units, D] of each unit in the order in which they come, where a stage looks at them.
    """

    frames: list[Frame]
    unit: int
    units: int
    left: Tensor | None = None
    cuts: dict[bool, tuple[Tensor, int]] = field(default_factory=dict)
    rotary: tuple[Tensor, tuple[Tensor, ...]] | None = None
    members: Tensor | None = None
    mask: tuple[Tensor, Tensor, Tensor] | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    pixels: Tensor | None = None

    def patches(self, places: Tensor) -> Tensor:
        """Rows [n * unit] of the patches of units [n], ascending."""
        if self.members is not None:
            return self.members[places].flatten().sort().values
        inside = torch.arange(self.unit, device=places.device)
        return (places[:, None] * self.unit + inside).flatten()

    def by_unit(self) -> Tensor:
        """[n * unit] which of the patches that are left are those of the first unit that is left, of the second, and so on."""
        assert self.members is not None
        rows = (self.members if self.left is None else self.members[self.left]).flatten()
        return rows.argsort().argsort()

    def slots(self) -> Tensor:
        """[units] where each unit is now; arbitrary for those that are gone."""
        assert self.left is not None
        now = torch.zeros(self.units, dtype=torch.long, device=self.left.device)
        return now.scatter(0, self.left, torch.arange(len(self.left), device=self.left.device))

    @property
    def lengths(self) -> list[int]:
        """Patches that are left of each frame, which is a sequence of its own."""
        return [len(frame.left) * self.unit for frame in self.frames]

    def boundaries(self, full: Tensor, windowed: bool) -> tuple[Tensor, int]:
        """Boundaries of sequences, or of windows, among the patches that are left, and the longest; empty windows vanish."""
        if windowed not in self.cuts:
            self.cuts[windowed] = self._windows(full) if windowed else self._sequences(full)
        return self.cuts[windowed]

    def _sequences(self, full: Tensor) -> tuple[Tensor, int]:
        lengths = self.lengths
        cuts = torch.tensor([0, *accumulate(lengths)], dtype=full.dtype, device="cpu")
        return cuts.to(full.device, non_blocking=True), max(lengths)

    def _windows(self, full: Tensor) -> tuple[Tensor, int]:
        assert self.left is not None
        alive = torch.zeros(self.units + 1, dtype=torch.long, device=full.device)
        alive = alive.scatter(0, self.left.to(full.device) + 1, self.unit)
        cuts = torch.unique_consecutive(alive.cumsum(0)[full.long() // self.unit].cpu())
        return cuts.to(full.device, full.dtype, non_blocking=True), int((cuts[1:] - cuts[:-1]).max())
