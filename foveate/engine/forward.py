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

from foveate.core.plan import Stage
from foveate.core.view import Observation
from foveate.engine.conversation import Conversation
from foveate.engine.projection import Alive
from foveate.engine.survivors import Survivors

_T = TypeVar("_T")


@dataclass
class Answers:
    """What a gate knows of the answers in a pass.

    Attributes:
        numbers: [B or 1, S] long, which token of its answer each column is, negative where it is none; None where no stage
            gates anything in this pass.
        ids: token ids [B, S] of the columns, if the caller gave them.
        rejected: [B, S] bool, True at columns that the layers after the gate do not store; None before it has decided.
    """

    numbers: Tensor | None
    ids: Tensor | None = None
    rejected: Tensor | None = None


@dataclass
class Shared:
    """What the layers of one pass share.

    Attributes:
        stacked: features that the model adds after early layers, one [N, D] for each, and the columns [B, S] of all of them.
        masks: by decoder layer, the mask of a layer whose keys later layers read too.
        policy: [B, S], how much each column is kept, while learned methods are trained.
        observed: what was measured, per (stage's layer, observation): [B, H, S] for the columns of the pass.
        entered: by decoder layer, the states that entered it, where a stage behind it asks how far they move.
        matched: [B, S] bool, False at text that matches the visual tokens too little to rate them, where a stage asks for it.
    """

    stacked: tuple[Sequence[Tensor], Tensor] | None = None
    masks: dict[int, Any] = field(default_factory=dict)
    policy: Tensor | None = None
    observed: dict[tuple[int, Observation], Tensor] = field(default_factory=dict)
    entered: dict[int, Tensor] = field(default_factory=dict)
    matched: Tensor | None = None
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


@dataclass
class Pass:
    """One forward call of the base model.

    Attributes:
        owner: the attachment.
        conversation: the conversation it belongs to.
        queries: columns in this call.
        past: columns in the cache before this call.
        cached: whether there is a cache: then the choice holds for the whole answer. Without one, selection is recomputed at
            every step.
        modules: of learned methods, by their stage.
        labels: the labels of the loss, to be edited in place once it is known which columns are gone.
        survivors: what stages have left of the columns; None if there is nothing to choose from.
        instructions: by stage on the instruction, the columns [B, S] bool that it judges, on the CPU; {} where none does.
        answers: what the plan's gate knows; None for a plan without one.
        shared: what its layers share.
    """

    owner: object
    conversation: Conversation
    queries: int
    past: int
    cached: bool
    modules: Mapping[Stage, nn.Module] = field(default_factory=dict)
    labels: Tensor | None = None
    survivors: Survivors | None = None
    instructions: Mapping[Stage, Tensor] = field(default_factory=dict)
    answers: Answers | None = None
    shared: Shared = field(default_factory=Shared)

    @property
    def chooses(self) -> bool:
        """Whether there are visual tokens to choose from."""
        return self.survivors is not None and bool(self.survivors.spans)

    @property
    def numbers(self) -> Tensor | None:
        """[B or 1, S] long, which token of its answer each column is; None where no stage gates anything in this pass."""
        return None if self.answers is None else self.answers.numbers

    @property
    def left(self) -> Survivors:
        """The survivors of a pass that has something to choose from."""
        assert self.survivors is not None
        return self.survivors

    def alive_on(self, device: torch.device) -> Alive | None:
        """The tokens that reach the current layer on a device, None for all columns."""
        alive = None if self.survivors is None else self.survivors.alive
        if alive is None or alive.index.device == device:
            return alive
        return self.shared.once(("alive", device), alive, lambda: alive.to(device))


@dataclass(frozen=True)
class _Running:
    """A pass and the identity of the function that calls the base model, while it runs."""

    work: Pass
    frame: int


_running: ContextVar[tuple[_Running, ...]] = ContextVar("foveate_passes", default=())


def current(owner: object) -> Pass | None:
    """The pass of an attachment that is running in this context."""
    found = _innermost(owner)
    return None if found is None else found.work


def enter(work: Pass) -> int:
    """Make a pass current, within those of calls that are still running; returns the frame of its call.

    Passes left by interrupted calls are dropped.
    """
    # The first function outside of this package is torch's, which runs as long as the module that it calls.
    frames = (id(frame) for frame in _frames() if not str(frame.f_globals.get("__name__", "")).startswith("foveate."))
    frame = next(frames, 0)
    drop_interrupted()
    _running.set((*_running.get(), _Running(work, frame)))
    return frame


def leave(owner: object) -> tuple[Pass, int] | None:
    """Drop the innermost pass of an owner; returns it and the frame of its call."""
    found = _innermost(owner)
    _running.set(tuple(known for known in _running.get() if known is not found))
    return None if found is None else (found.work, found.frame)


def drop_interrupted() -> None:
    """Drop the passes of calls that run no more: torch runs no hooks after KeyboardInterrupt."""
    if _running.get():
        frames = {id(frame) for frame in _frames()}
        _running.set(tuple(known for known in _running.get() if known.frame in frames))


def _innermost(owner: object) -> _Running | None:
    return next((known for known in reversed(_running.get()) if known.work.owner is owner), None)


def _frames() -> Iterator[FrameType]:
    """The functions that are running in this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
