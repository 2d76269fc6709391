"""Which calls of an attached model are running: hooks must not be changed under another thread's call."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from types import FrameType

from foveate.errors import AttachError

_POLL_SECONDS = 0.002


class Activity:
    """The calls of one attachment that are running, by the frames that run them: an interrupted call is over by itself."""

    def __init__(self) -> None:
        self._generates: set[tuple[int, int]] = set()  # (thread, frame)
        self._passes: set[tuple[int, int]] = set()

    def generating(self) -> tuple[int, int]:
        """Note that the caller's function runs generate(); give what it returns to `over`."""
        entry = (threading.get_ident(), id(sys._getframe(1)))
        self._generates.add(entry)
        return entry

    def over(self, entry: tuple[int, int]) -> None:
        """The function is about to return."""
        self._generates.discard(entry)

    def passing(self, frame: int) -> None:
        """Note a forward call that runs as long as a frame of this thread does."""
        self._passes = self._running(self._passes) | {(threading.get_ident(), frame)}

    def passed(self, frame: int) -> None:
        """The call that this frame runs is over."""
        self._passes.discard((threading.get_ident(), frame))

    @contextmanager
    def settled(self, lock: RLock) -> Iterator[None]:
        """Hold a lock at a moment at which no other thread runs a call; waits for it without the lock.

        Raises:
            AttachError: within a forward call, or within generate() while other threads generate too.
        """
        while True:
            with lock:
                if not self._busy():
                    yield
                    return
            time.sleep(_POLL_SECONDS)

    def _busy(self) -> bool:
        own = threading.get_ident()
        if any(thread == own for thread, _ in self._running(self._passes)):
            raise AttachError("a forward call of the model is running: change or detach the plan afterwards")
        others = {entry for entry in self._running(self._generates | self._passes) if entry[0] != own}
        if others & self._generates and any(thread == own for thread, _ in self._running(self._generates)):
            raise AttachError("other threads generate too: change or detach the plan outside of generate()")
        return bool(others)

    @staticmethod
    def _running(entries: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Of these the ones whose frame is on its thread's stack."""
        if not entries:
            return set()
        frames: dict[int, set[int]] = {}
        for thread, top in sys._current_frames().items():
            frame: FrameType | None = top
            stack = frames.setdefault(thread, set())
            while frame is not None:
                stack.add(id(frame))
                frame = frame.f_back
        return {(thread, frame_id) for thread, frame_id in entries if frame_id in frames.get(thread, ())}
