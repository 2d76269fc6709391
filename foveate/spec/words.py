"""Turning the words of a call into budgets, sites and the fields of a dataclass, and back."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, fields
from decimal import Context, Decimal
from typing import Any, get_args, get_origin, get_type_hints

from foveate.core.budget import Budget, Rounding
from foveate.errors import BudgetError, SpecError, did_you_mean
from foveate.spec.grammar import Bare, Value

_COUNT = re.compile(r"([0-9]{1,18})(tok)?")
_THRESHOLD = re.compile(r"threshold:([0-9]*\.?[0-9]+(?:[eE]-[0-9]{1,3})?)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?%?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_PERCENT = Context(prec=100)  # wide enough for every number that is not refused anyway
_SWITCH = {"on": True, "true": True, "off": False, "false": False}


def read_budget(value: Value, rounding: Rounding = Rounding.HALF_UP) -> Budget:
    """Read what `keep` says: 0.5, 50 %, 144, 144tok, or threshold:0.5 for a method whose scores are probabilities.

    Raises:
        BudgetError: for anything that is not a ratio in (0, 1], a percentage in (0, 100] or a count of 2 or more;
            a bare 1 could mean all or one, so it is refused.
    """
    text = shown(value)
    if isinstance(value, tuple):
        raise BudgetError(f"keep={text}: one value is expected here, not a list; write e.g. keep=0.5")
    if (count := _COUNT.fullmatch(text)) is not None and (count[2] or int(count[1]) != 1):
        return Budget(count=int(count[1]), rounding=rounding)
    if (threshold := _THRESHOLD.fullmatch(text)) is not None and 0 < float(threshold[1]) < 1:
        return Budget(threshold=float(threshold[1]), rounding=rounding)
    if _NUMBER.fullmatch(text) is None:
        raise BudgetError(f"keep={text}: write a ratio (0.5), a percentage (50%) or a count (144)")
    number = Decimal(text.removesuffix("%"))
    if text.endswith("%"):
        number = number.scaleb(-2, _PERCENT)
    elif number == 1 and not re.search(r"\.0", text):
        raise BudgetError("keep=1 is ambiguous: write keep=100% (all tokens) or keep=1tok (one token)")
    elif number > 1:
        raise BudgetError(f"keep={text}: a ratio is at most 1 and a count is a whole number; write 0.5, 50% or 144")
    return Budget(ratio=number, rounding=rounding)


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


def write_fields(instance: Any) -> list[str]:
    """The fields that differ from their defaults, as `word=value` in the spec's own grammar."""
    words = []
    for field in fields(instance):
        value = getattr(instance, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default:
            words.append(f"{field.name}={_write(value)}")
    return words


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"[{', '.join(_write(item) for item in value)}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w:.-]*", value):
        quote = "'" if '"' in value else '"'
        if quote in value:
            raise SpecError(f"the text of a plan cannot hold {value!r}, which has both kinds of quotes")
        return f"{quote}{value}{quote}"
    return str(value)


def shown(value: Value) -> str:
    """A value as the user wrote it, for error messages."""
    if isinstance(value, tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return value.text if isinstance(value, Bare) else value
