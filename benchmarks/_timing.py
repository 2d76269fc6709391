"""Clocks: wall and process time, the parts of a forward pass, turns, and the peak of live memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks._live_bytes import LiveBytes


@dataclass(frozen=True)
class Spent:
    """Milliseconds of wall time, and of process time over all threads (None on an accelerator)."""

    wall: float
    cpu: float | None

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, None if self.cpu is None or other.cpu is None else self.cpu + other.cpu)


class Clock:
    """Marks moments. On CUDA a moment is an event on the stream, so that nothing waits while a pass is running."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A moment between two pieces of work."""
        if self.device.type != "cuda":
            return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, start: Any, end: Any) -> Spent:
        """What passed between two moments; waits for the device."""
        if self.device.type != "cuda":
            return Spent(1e3 * (end[0] - start[0]), 1e3 * (end[1] - start[1]))
        end.synchronize()
        return Spent(start.elapsed_time(end), None)

    def total(self, marks: list[tuple[Any, Any]]) -> Spent:
        """The sum over several pieces."""
        zero = Spent(0.0, 0.0 if self.device.type != "cuda" else None)
        return sum((self.between(start, end) for start, end in marks), zero)

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Parts:
    """Time within groups of modules and of functions, while active. Enter it after a plan's hooks to include them.

    Args:
        clock: whose moments.
        modules: the modules of each part; none may contain another of the same part.
        functions: (module, name) of the functions of each part, as they are looked up when called.
    """

    clock: Clock
    modules: Mapping[str, list[nn.Module]]
    functions: Mapping[str, tuple[tuple[Any, str], ...]] = field(default_factory=dict)

    def __enter__(self) -> Parts:
        self.marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in (*self.modules, *self.functions)}
        self._open: list[Any] = []
        self._handles: list[Any] = []
        self._before: list[tuple[Any, str, Any]] = []
        for name, members in self.modules.items():
            for module in members:
                self._handles.append(module.register_forward_pre_hook(self._start, prepend=True))
                self._handles.append(module.register_forward_hook(self._end(name)))
        for name, places in self.functions.items():
            for owner, attribute in places:
                self._before.append((owner, attribute, getattr(owner, attribute)))
                setattr(owner, attribute, self._watched(name, getattr(owner, attribute)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for owner, attribute, function in self._before:
            setattr(owner, attribute, function)

    def _start(self, module: nn.Module, args: Any) -> None:
        self._open.append(self.clock.mark())

    def _end(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.marks[name].append((self._open.pop(), self.clock.mark()))

        return note

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.clock.mark()
            out = function(*args, **kwargs)
            self.marks[name].append((start, self.clock.mark()))
            return out

        return run

    def spent(self) -> dict[str, Spent]:
        """The time within each part."""
        return {name: self.clock.total(marks) for name, marks in self.marks.items()}


def timed(call: Callable[[], Any]) -> tuple[Spent, Any]:
    """What a call took on the CPU, and what it returned."""
    clock = Clock(torch.device("cpu"))
    start = clock.mark()
    out = call()
    return clock.between(start, clock.mark()), out


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, list[str]]]:
    """For each round its number and the order of its turns: forwards and backwards, so that no place is always first."""
    for number in range(rounds):
        yield number, names[::-1] if number % 2 else list(names)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Appends the peak of bytes that torch allocated within the block, on top of what was alive before.

    On the CPU every operation's outputs are followed at the dispatcher, so the block must not be timed.
    """
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.append(torch.cuda.max_memory_allocated(device) - before)
        return
    with LiveBytes(flag_elements=1 << 62) as seen:
        yield found
    found.append(seen.peak)
