"""Turning the words of a call into budgets and the fields of a dataclass."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

from foveate.core.budget import Budget, Rounding
from foveate.errors import BudgetError, SpecError, did_you_mean
from foveate.spec.grammar import Bare, Value

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_SWITCH = {"on": True, "true": True, "off": False, "false": False}


def read_budget(value: Value, rounding: Rounding = Rounding.HALF_UP) -> Budget:
    """Read what `keep` says; BudgetError for a list, and as `Budget.read` does."""
    if isinstance(value, tuple):
        raise BudgetError(f"keep={shown(value)}: one value is expected here, not a list; write e.g. keep=0.5")
    return Budget.read(shown(value), rounding)


def read_fields(cls: type, words: dict[str, Value], name: str, reserved: tuple[str, ...] = ()) -> Any:
    """Build a method or recipe from the words that are its fields.

    Raises:
        SpecError: for an unknown word (with the nearest known one) or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]
    values = {}
    for word, value in words.items():
        if word not in known:
            raise SpecError(f"{name} has no option '{word}'." + did_you_mean(word, [*known, *reserved]))
        values[word] = _convert(value, hints[word], f"{name}({word}=...)")
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING and f.name not in values]
    if missing:
        raise SpecError(f"{name} needs {', '.join(missing)}")
    return cls(**values)


def _convert(value: Value, expected: Any, where: str) -> Any:
    if get_origin(expected) is tuple:
        items = value if isinstance(value, tuple) else (value,)
        return tuple(_convert(item, get_args(expected)[0], where) for item in items)
    if isinstance(value, tuple):
        raise SpecError(f"{where} takes one value, not a list")
    if expected is Budget:
        return read_budget(value)
    if expected is int and _WHOLE.fullmatch(shown(value)) is None:
        raise SpecError(f"{where} takes a whole number, not {shown(value)}")
    text = value.text if isinstance(value, Bare) else value
    if expected is str:
        return text
    if expected is bool:
        if text.lower() not in _SWITCH:
            raise SpecError(f"{where} is a switch: write on or off, not {text}")
        return _SWITCH[text.lower()]
    if expected in (int, float):
        try:
            number = expected(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise SpecError(f"{where} takes a number, not {text}")
        return number
    raise TypeError(f"{where}: a spec cannot express {expected}")


def shown(value: Value) -> str:
    """A value as the user wrote it, for error messages."""
    if isinstance(value, tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return value.text if isinstance(value, Bare) else value
