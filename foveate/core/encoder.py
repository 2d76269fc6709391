"""Where a family's vision encoder keeps its tokens, in the words that the engine needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderPath:
    """A vision encoder whose layers take [B, prefix + h * w, D] and attend within each row. Paths are dotted, from the top.

    Attributes:
        tower: the module whose output holds the features, with the full number of tokens.
        projector: the module behind it whose output rows are visual tokens.
        attention: the attention module within an encoder layer.
        grid: (h, w) patches of each row.
        prefix: tokens in front of the patches (a class token), which always stay.
        unit: side of the square of patches that becomes one visual token; decisions are made on whole squares.
        used: how many of its layers the language model's features pass; a stage behind them would change nothing.
    """

    tower: str
    projector: str
    grid: tuple[int, int]
    used: int
    attention: str = "self_attn"
    prefix: int = 0
    unit: int = 1

    @property
    def patches(self) -> int:
        """Patches of each row."""
        return self.grid[0] * self.grid[1]

    @property
    def unit_grid(self) -> tuple[int, int]:
        """(h, w) in units."""
        return self.grid[0] // self.unit, self.grid[1] // self.unit
