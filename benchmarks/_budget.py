"""Sharing a time budget between cells: never fewer than the least rounds, and what does not fit is named."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Decides which cells run and how often, from how long the work before them took.

    Args:
        seconds: for all cells together; None for no bound.
        work: theoretical work of one round of every cell, in the order in which they run, in any unit.
        least, most: rounds of a cell.
        now: a clock in seconds.
    """

    def __init__(
        self,
        seconds: float | None,
        work: list[float],
        least: int = 5,
        most: int = 15,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.work, self.least, self.most, self.now = seconds, work, least, most, now
        self.start = now()
        self.measured = self.done = 0.0  # seconds, and work that they were spent on

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.seconds is None else self.seconds - (self.now() - self.start)

    def note(self, seconds: float, work: float) -> None:
        """A round of some cell took so long."""
        self.measured, self.done = self.measured + seconds, self.done + work

    def _round(self, cell: int) -> float:
        """Predicted seconds of a round."""
        return self.work[cell] * self.measured / self.done if self.done else 0.0

    def refusal(self, cell: int) -> str | None:
        """Why a cell cannot run any more, in words; its warming-up counts as a round."""
        needed = (self.least + 1) * self._round(cell)
        if needed <= self.left:
            return None
        left = max(0.0, self.left)
        return f"cut: {self.least} rounds and warming up take about {needed:.0f} s, {left:.0f} s of the budget are left"

    def rounds(self, cell: int, round_seconds: float) -> int:
        """How often to measure a warm cell: its share of the time that is left once every later cell has its least.

        Later cells that do not fit are not waited for.
        """
        if self.seconds is None:
            return self.most
        own = self.least * round_seconds
        spare, sharing = self.left - own, 1
        for later in range(cell + 1, len(self.work)):
            needed = (self.least + 1) * self._round(later)
            if needed > spare:
                break
            spare, sharing = spare - needed, sharing + 1
        extra = int(max(0.0, spare) / sharing / round_seconds)
        return min(self.most, self.least + extra)
