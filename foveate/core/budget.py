"""How many tokens stay. The only place in foveate that rounds a token count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from enum import Enum
from fractions import Fraction

from foveate.errors import BudgetError


class Rounding(str, Enum):
    """What becomes of a fractional count; half up by default.

    The authors' programs differ: FastV's Hugging Face code and iLLaVA v2 round half to even (Python's `round`: 24 of 49 at a
    half, 180 of 361, 364 of 729), Dynamic-LLaVA cuts the fraction off. Ratios are exact decimals here: where a program's own
    float product falls just beside a half, it may round to the other side.
    """

    HALF_UP = "half_up"
    HALF_EVEN = "half_even"
    CEIL = "ceil"
    FLOOR = "floor"


# More decimals than anybody writes; the bound keeps exact arithmetic small.
_MAX_DECIMALS = 28
_EXACT = Context(prec=2 * _MAX_DECIMALS)
_MOST_TOKENS = 10**9
_COUNT = re.compile(r"([0-9]{1,18})(tok)?")
_SHARE = re.compile(r"(threshold|energy):([0-9]*\.?[0-9]+(?:[eE]-[0-9]{1,3})?)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?%?")
_PERCENT = Context(prec=100)  # wide enough for every number that is not refused anyway


@dataclass(frozen=True)
class Budget:
    """What STAYS: a ratio of the tokens that arrive, a count, a score threshold or a share of energy; exactly one is set.

    Ratios are exact decimals, so 0.1 of 576 is 57.6 and not 57.599999: 58 half up, 57 floor.

    Attributes:
        ratio, count: of the tokens that arrive.
        threshold: the score above which a token stays, of a method whose scores are probabilities.
        energy: as many tokens as singular values of their states [N, D] hold this share of the squared sum of all.
        rounding: of a ratio.
        at_least: a floor for what the others give; a count needs none.
    """

    ratio: Decimal | None = None
    count: int | None = None
    threshold: float | None = None
    rounding: Rounding = Rounding.HALF_UP
    energy: float | None = None
    at_least: int = 1

    def __post_init__(self) -> None:
        given = [value for value in (self.ratio, self.count, self.threshold, self.energy) if value is not None]
        if len(given) != 1:
            raise BudgetError(
                "a budget is exactly one of: a ratio (keep=0.5), a count (keep=144), a threshold, a share of energy"
            )
        if self.ratio is not None and not isinstance(self.ratio, Decimal):
            raise BudgetError(f"a ratio is a Decimal, not {type(self.ratio).__name__}: write Budget.of_ratio(0.5)")
        if self.count is not None and (isinstance(self.count, bool) or not isinstance(self.count, int)):
            raise BudgetError(f"a count is a whole number, not {type(self.count).__name__}: write keep=144")
        if self.threshold is not None and not isinstance(self.threshold, float):
            raise BudgetError(f"a threshold is a float, not {type(self.threshold).__name__}: write keep=threshold:0.5")
        if self.ratio is not None and not (self.ratio.is_finite() and 0 < self.ratio <= 1):
            raise BudgetError(f"keep={self.ratio}: a ratio must be more than 0 and at most 1, e.g. keep=0.5")
        if self.ratio is not None:
            if self.ratio.as_tuple().exponent < -_MAX_DECIMALS:  # type: ignore[operator]  # finite, so a number
                raise BudgetError(f"keep={self.ratio}: a ratio has at most {_MAX_DECIMALS} decimals")
            # 0.50 and 0.5 are one budget with one text; the caller's decimal context has no say in it.
            object.__setattr__(self, "ratio", self.ratio.normalize(_EXACT))
        if self.count is not None and self.count > _MOST_TOKENS:  # not shown: it may have a million digits
            raise BudgetError(f"a count is at most {_MOST_TOKENS:,}, e.g. keep=144")
        if self.count is not None and self.count < 1:
            raise BudgetError(f"keep={max(self.count, -1)}: a count must be at least 1, e.g. keep=144")
        if self.energy is not None and not (isinstance(self.energy, float) and 0 < self.energy < 1):
            raise BudgetError("energy is a share above 0 and below 1: write e.g. keep=energy:0.9")
        if isinstance(self.at_least, bool) or not isinstance(self.at_least, int) or not 1 <= self.at_least <= _MOST_TOKENS:
            raise BudgetError(f"at_least is a whole number from 1 to {_MOST_TOKENS:,}, e.g. at_least=16")
        if self.count is not None and self.at_least != 1:
            raise BudgetError("a count needs no at_least: leave it out, or write keep=0.5 or keep=energy:0.9")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise BudgetError(f"threshold:{self.threshold}: scores are probabilities, write e.g. keep=threshold:0.5")

    @classmethod
    def read(cls, text: str, rounding: Rounding = Rounding.HALF_UP, at_least: int = 1) -> Budget:
        """Read what `keep` says: 0.5, 50 %, 144, 144tok, energy:0.9, or threshold:0.5 where scores are probabilities.

        Raises:
            BudgetError: for anything that is not a ratio in (0, 1], a percentage in (0, 100] or a count of 2 or more;
                a bare 1 could mean all or one, so it is refused.
        """
        if (count := _COUNT.fullmatch(text)) is not None and (count[2] or int(count[1]) != 1):
            return cls(count=int(count[1]), rounding=rounding, at_least=at_least)
        if (share := _SHARE.fullmatch(text)) is not None and 0 < float(share[2]) < 1:
            value = float(share[2])
            if share[1] == "energy":
                return cls(energy=value, rounding=rounding, at_least=at_least)
            return cls(threshold=value, rounding=rounding, at_least=at_least)
        if _NUMBER.fullmatch(text) is None:
            raise BudgetError(f"keep={text}: write a ratio (0.5), a percentage (50%) or a count (144)")
        number = Decimal(text.removesuffix("%"))
        if text.endswith("%"):
            number = number.scaleb(-2, _PERCENT)
        elif number == 1 and not re.search(r"\.0", text):
            raise BudgetError("keep=1 is ambiguous: write keep=100% (all tokens) or keep=1tok (one token)")
        elif number > 1:
            raise BudgetError(f"keep={text}: a ratio is at most 1 and a count is a whole number; write 0.5, 50% or 144")
        return cls(ratio=number, rounding=rounding, at_least=at_least)

    @classmethod
    def of_ratio(cls, ratio: float | str | Decimal, rounding: Rounding = Rounding.HALF_UP) -> Budget:
        """Keep this share of the arriving tokens, 0 < ratio <= 1. Floats are read as they print: 0.1 is exactly 1/10."""
        try:
            exact = Decimal(str(ratio))
        except (InvalidOperation, ValueError):  # ValueError: a whole number of thousands of digits
            shown = ratio if isinstance(ratio, str) else f"of {type(ratio).__name__}"
            raise BudgetError(f"keep={shown}: a ratio is a number, e.g. keep=0.5") from None
        return cls(ratio=exact, rounding=rounding)

    @classmethod
    def of_count(cls, count: int) -> Budget:
        """Keep this many tokens, at least 1."""
        return cls(count=count)

    @property
    def is_fixed(self) -> bool:
        """Whether the count follows from shapes alone."""
        return self.threshold is None and self.energy is None

    def resolve(self, available: int) -> int:
        """Return how many of the `available` tokens that arrive at the stage stay: at least `at_least`, at most all of them.

        Raises:
            BudgetError: for a threshold or a share of energy: the count depends on what the picture shows, not on shapes.
        """
        if not self.is_fixed:
            raise BudgetError(f"keep={self} follows the picture: it has no count before the model has seen it")
        if self.ratio is not None:
            top, bottom = self.ratio.as_integer_ratio()
            wanted = _divide(top * available, bottom, self.rounding)
        else:
            assert self.count is not None
            wanted = self.count
        return self.within(wanted, available)

    def within(self, wanted: int, available: int) -> int:
        """A count that is wanted, brought between the floor and what there is."""
        return min(max(wanted, self.at_least), available)

    def __str__(self) -> str:
        if self.ratio is not None:
            return "100%" if self.ratio == 1 else str(self.ratio)
        if self.count is not None:
            return "1tok" if self.count == 1 else str(self.count)
        return f"threshold:{self.threshold}" if self.energy is None else f"energy:{self.energy}"


def _divide(top: int, bottom: int, rounding: Rounding) -> int:
    """top / bottom for positive whole numbers, rounded exactly."""
    if rounding is Rounding.FLOOR:
        return top // bottom
    if rounding is Rounding.CEIL:
        return -(-top // bottom)
    if rounding is Rounding.HALF_EVEN:
        return round(Fraction(top, bottom))
    return (2 * top + bottom) // (2 * bottom)
