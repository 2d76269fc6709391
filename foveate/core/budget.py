"""How many tokens stay. The only place in foveate that rounds a token count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from enum import Enum

from foveate.errors import BudgetError


class Rounding(str, Enum):
    """What becomes of a fractional count. FastV's Hugging Face code rounds half up, so do we by default."""

    HALF_UP = "half_up"
    CEIL = "ceil"
    FLOOR = "floor"


class Unit(str, Enum):
    """What is counted: tokens, or whole merge groups of a family that joins tokens after the encoder."""

    TOKEN = "token"
    GROUP = "group"


# More decimals than anybody writes; the bound keeps exact arithmetic small.
_MAX_DECIMALS = 28
_EXACT = Context(prec=2 * _MAX_DECIMALS)


@dataclass(frozen=True)
class Budget:
    """What STAYS: a ratio of the tokens that arrive, a count, or a score threshold. Exactly one of the three is set.

    Ratios are exact decimals, so 0.1 of 576 is 57.6 and not 57.599999: 58 half up, 57 floor.
    """

    ratio: Decimal | None = None
    count: int | None = None
    threshold: float | None = None
    rounding: Rounding = Rounding.HALF_UP
    unit: Unit = Unit.TOKEN

    def __post_init__(self) -> None:
        given = [value for value in (self.ratio, self.count, self.threshold) if value is not None]
        if len(given) != 1:
            raise BudgetError("a budget is exactly one of: a ratio (keep=0.5), a count (keep=144), a threshold")
        if self.ratio is not None and not (self.ratio.is_finite() and 0 < self.ratio <= 1):
            raise BudgetError(f"keep={self.ratio}: a ratio must be more than 0 and at most 1, e.g. keep=0.5")
        if self.ratio is not None:
            if self.ratio.as_tuple().exponent < -_MAX_DECIMALS:  # type: ignore[operator]  # finite, so a number
                raise BudgetError(f"keep={self.ratio}: a ratio has at most {_MAX_DECIMALS} decimals")
            # 0.50 and 0.5 are one budget with one text; the caller's decimal context has no say in it.
            object.__setattr__(self, "ratio", self.ratio.normalize(_EXACT))
        if self.count is not None and self.count < 1:
            raise BudgetError(f"keep={self.count}: a count must be at least 1, e.g. keep=144")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise BudgetError(f"threshold={self.threshold}: a threshold must be a finite number")

    @classmethod
    def of_ratio(cls, ratio: float | str | Decimal, rounding: Rounding = Rounding.HALF_UP) -> Budget:
        """Keep this share of the arriving tokens, 0 < ratio <= 1. Floats are read as they print: 0.1 is exactly 1/10."""
        try:
            return cls(ratio=Decimal(str(ratio)), rounding=rounding)
        except InvalidOperation:
            raise BudgetError(f"keep={ratio}: a ratio is a number, e.g. keep=0.5") from None

    @classmethod
    def of_count(cls, count: int) -> Budget:
        """Keep this many tokens, at least 1."""
        return cls(count=count)

    @property
    def is_fixed(self) -> bool:
        """Whether the count follows from shapes alone."""
        return self.threshold is None

    def resolve(self, available: int, group: int = 1) -> int:
        """Return how many of `available` tokens stay: at least one unit, at most all of them.

        Args:
            available: tokens that arrive at the stage, a multiple of `group`.
            group: tokens per merge group; only used when the unit is GROUP.

        Raises:
            BudgetError: for a threshold, whose count depends on the scores and not on shapes.
        """
        if not self.is_fixed:
            raise BudgetError("a threshold budget has no count before the scores are known")
        size = group if self.unit is Unit.GROUP else 1
        units = available // size
        if self.ratio is not None:
            top, bottom = self.ratio.as_integer_ratio()
            wanted = _divide(top * available, bottom * size, self.rounding)
        else:
            assert self.count is not None
            wanted = self.count // size
        return min(max(wanted, 1), units) * size

    def __str__(self) -> str:
        if self.ratio is not None:
            return "100%" if self.ratio == 1 else str(self.ratio)
        if self.count is not None:
            return "1tok" if self.count == 1 else str(self.count)
        return f"threshold:{self.threshold}"


def _divide(top: int, bottom: int, rounding: Rounding) -> int:
    """top / bottom for positive whole numbers, rounded exactly."""
    if rounding is Rounding.FLOOR:
        return top // bottom
    if rounding is Rounding.CEIL:
        return -(-top // bottom)
    return (2 * top + bottom) // (2 * bottom)
