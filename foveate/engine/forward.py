"""What lives for one forward call: a Pass, in a context variable, so that threads and nested calls cannot mix."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from foveate.core.layout import Layout
from foveate.core.plan import Stage
from foveate.core.view import Observation
from foveate.engine.conversation import Conversation
from foveate.engine.projection import Alive

_T = TypeVar("_T")


@dataclass
class Span:
    """Visual tokens that are ranked together: one crop or frame, one medium, or all media of a row. Tensors are on the device.

    Attributes:
        row: batch row.
        medium: number of the medium within its row; of the first one if there are several.
        kind: "image" or "video"; of the first medium if there are several.
        frame: number of the frame or crop within its medium; of the first one if there are several.
        frames: frames and crops of the whole medium.
        grid: (t, h, w) while the tokens are a whole grid in raster order, else None.
        owner: [n] long, key of each token's medium in the trace.
        columns: [n] long, column of each token in this pass.
        coords: [n, 3] long, (t, y, x) on the medium's grids; t counts on from grid to grid.
        sizes: [n] fp32, how many originals each token stands for.
        count: n, known on the host.
        asks: its last token is the last column of its sample, or of that one's prompt: it stays whatever a method says.
        sample: number of the sample among those packed into the row.
        number: as `medium`, counted within the sample.
    """

    row: int
    medium: int
    kind: str
    frame: int
    frames: int
    grid: tuple[int, int, int] | None
    owner: Tensor
    columns: Tensor
    coords: Tensor
    sizes: Tensor
    count: int
    asks: bool = False
    sample: int = 0
    number: int = 0

    @staticmethod
    def join(spans: list[Span]) -> Span:
        """Several spans as one; whole frames or crops of one size make a whole grid."""
        if len(spans) == 1:
            return spans[0]
        first = spans[0]
        grids = [span.grid for span in spans if span.grid is not None and span.medium == first.medium]
        whole = len(grids) == len(spans) and len({grid[1:] for grid in grids}) == 1
        grid = (sum(t for t, _, _ in grids), *grids[0][1:]) if whole else None
        return Span(
            first.row,
            first.medium,
            first.kind,
            first.frame,
            first.frames,
            grid,
            torch.cat([span.owner for span in spans]),
            torch.cat([span.columns for span in spans]),
            Span._coords(spans),
            torch.cat([span.sizes for span in spans]),
            sum(span.count for span in spans),
            spans[-1].asks,
            first.sample,
            first.number,
        )

    @staticmethod
    def _coords(spans: list[Span]) -> Tensor:
        """Coordinates of several spans; media follow each other in time, so that a spatial window never mixes two."""
        parts, start, medium = [], 0, spans[0].medium
        for span, before in zip(spans, [spans[0], *spans], strict=False):
            if span.medium != medium:
                start, medium = start + before.frames, span.medium
            parts.append(torch.cat([span.coords[:, :1] + start, span.coords[:, 1:]], dim=1))
        return torch.cat(parts)


@dataclass
class Pass:
    """One forward call of the base model.

    Attributes:
        owner: the attachment.
        conversation: the conversation it belongs to.
        queries: columns in this call.
        past: columns in the cache before this call.
        cached: whether there is a cache: then the choice holds for the whole answer, else every step chooses anew.
        layout: roles and media of the columns, None if there is nothing to choose from.
        real: [B, S] bool on the device, False at padding.
        dead: [B, S] bool on the device, True at columns that stages removed.
        lengths: surviving columns per row.
        spans: the surviving visual tokens, by frame, medium or row, as the last stage ranked them.
        alive: the tokens that reach the current layer, None for all columns.
        first_medium: key of this pass's first medium in the trace.
        shortened: every `alive` of this pass with the layer it starts at, in order, to scatter captured hidden states back.
        hidden: [B, past + S] bool, True at key columns that a MASK stage hides; None without one.
        observed: what was measured, per (stage's layer, observation): [B, H, S] for the columns of this pass.
        stacked: features that the model adds behind early layers, one [N, D] for each, and the columns [B, S] of all of them.
        masks: by decoder layer, the mask of a layer whose keys later layers read too.
        labels: the labels of the loss, to be edited in place once it is known which columns are gone.
        ids: token ids [B, S] of the columns, if the caller gave them.
        numbers: [B or 1, S] long, which token of its answer each column is, negative where it is none; None where no stage
            gates anything in this pass.
        modules: of learned methods, by their stage.
        policy: [B, S], how much each column is kept, while such methods are trained.
        ids_unknown: nobody gave token ids: what stands in the prompt's embeddings is not known.
        frame: identity of the function that calls the base model, while it runs.
        rejected: [B, S] bool, True at columns that the layers behind the gate do not store; None before it has decided.
    """

    owner: object
    conversation: Conversation
    queries: int
    past: int = 0
    cached: bool = False
    layout: Layout | None = None
    real: Tensor | None = None
    dead: Tensor | None = None
    lengths: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    alive: Alive | None = None
    first_medium: int = 0
    shortened: list[tuple[int, Alive]] = field(default_factory=list)
    hidden: Tensor | None = None
    observed: dict[tuple[int, Observation], Tensor] = field(default_factory=dict)
    stacked: tuple[Sequence[Tensor], Tensor] | None = None
    masks: dict[int, Any] = field(default_factory=dict)
    labels: Tensor | None = None
    ids: Tensor | None = None
    numbers: Tensor | None = None
    rejected: Tensor | None = None
    policy: Tensor | None = None
    ids_unknown: bool = False
    frame: int = 0
    modules: Mapping[Stage, nn.Module] = field(default_factory=dict)
    memo: dict[Any, tuple[Any, Any]] = field(default_factory=dict)

    def once(self, key: Any, source: Any, make: Callable[[], _T]) -> _T:
        """Return what `make` returned for this key and source object the first time; layers share masks and positions.

        The source is held, so that its id cannot be reused within the pass.
        """
        known = self.memo.get((key, id(source)))
        if known is None:
            known = (source, make())
            self.memo[(key, id(source))] = known
        result: _T = known[1]
        return result

    def alive_at(self, layer: int) -> Alive | None:
        """The tokens that reached a layer, None for all columns."""
        reached = [alive for start, alive in self.shortened if start <= layer]
        return reached[-1] if reached else None

    def alive_on(self, device: torch.device) -> Alive | None:
        """The surviving tokens on a device."""
        alive = self.alive
        if alive is None or alive.index.device == device:
            return alive
        return self.once(("alive", device), alive, lambda: alive.to(device))


_passes: ContextVar[tuple[Pass, ...]] = ContextVar("foveate_passes", default=())


def current(owner: object) -> Pass | None:
    """The pass of an attachment that is running in this context."""
    for running in reversed(_passes.get()):
        if running.owner is owner:
            return running
    return None


def enter(running: Pass) -> None:
    """Make a pass current, within those of calls that are still running. Passes left by interrupted calls are dropped."""
    # The first function outside of this package is torch's, which runs as long as the module that it calls.
    frames = (id(frame) for frame in _frames() if not str(frame.f_globals.get("__name__", "")).startswith("foveate."))
    running.frame = next(frames, 0)
    drop_interrupted()
    _passes.set((*_passes.get(), running))


def leave(owner: object) -> None:
    """Drop the innermost pass of an owner."""
    running = current(owner)
    _passes.set(tuple(known for known in _passes.get() if known is not running))


def drop_interrupted() -> None:
    """Drop the passes of calls that run no more: torch runs no hooks behind KeyboardInterrupt."""
    if _passes.get():
        frames = {id(frame) for frame in _frames()}
        _passes.set(tuple(known for known in _passes.get() if known.frame in frames))


def _frames() -> Iterator[FrameType]:
    """The functions that are running in this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
