"""Random options of any method, from what its class says: the types of its fields, the values it accepts, its examples."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from foveate import methods
from foveate.core.method import Method
from foveate.errors import FoveateError

# What is tried to find out which numbers and texts an option accepts.
_WHOLE = [*range(-9, 100), 1_000, 10**6, 2**31, 2**32 - 1, 2**32, 10**15]
_REAL = [-1e9, -9.0, -1.0, 0.0, 1e-6, *(share / 1000 for share in range(1, 1000)), 1.0, 1.5, 9.0, 1e9]
_FREE = ["owner/name", "./a folder", "a b"]


@st.composite
def with_options(draw: st.DrawFn, cls: type[Method]) -> Any:
    """A method with any options that it takes."""
    given = draw(st.fixed_dictionaries(_values(cls)))
    try:
        return cls(**given)
    except FoveateError:  # options that exclude each other
        return draw(st.sampled_from(cls.examples()))


@cache
def _values(cls: type[Method]) -> dict[str, st.SearchStrategy[Any]]:
    hints = get_type_hints(cls)
    return {field.name: _field(cls, field.name, hints[field.name]) for field in fields(cls)}


def _field(cls: type[Method], name: str, kind: Any) -> st.SearchStrategy[Any]:
    shown = list(dict.fromkeys(getattr(one, name) for one in cls.examples()))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        items = _accepted(cls, name, inner, wrap=lambda item: (item,))
        return st.sampled_from(shown) | st.lists(items, max_size=3).map(tuple)
    if kind is str:
        shown += [word for word in _words(name) if word not in shown and _takes(cls, name, word)]
        # An example such as window:3 stands for any number.
        ends = {text[: text.index(":") + 1] for text in shown if re.fullmatch(r"\w+:\d+", text)}
        found = [st.integers(1, 99).map(lambda number, start=start: f"{start}{number}") for start in sorted(ends)]
        return st.one_of(st.sampled_from(shown), *found, *_free(cls, name))
    return st.sampled_from(shown) | _accepted(cls, name, kind)


@cache
def _words(name: str) -> tuple[str, ...]:
    """What examples of any method say in an option of this name: methods share options."""
    every = [one for method in methods.names() for one in methods.get(method).examples()]
    return tuple(dict.fromkeys(word for one in every if isinstance(word := getattr(one, name, None), str)))


def _accepted(cls: type[Method], name: str, kind: Any, wrap: Any = lambda value: value) -> st.SearchStrategy[Any]:
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.sampled_from(_FREE)
    tried = _WHOLE if kind is int else _REAL
    good = [value for value in tried if _takes(cls, name, wrap(value))]
    between = [value for value in tried if good[0] <= value <= good[-1]]
    if good != between:
        return st.sampled_from(good)
    return st.integers(good[0], good[-1]) if kind is int else st.floats(good[0], good[-1])


def _free(cls: type[Method], name: str) -> list[st.SearchStrategy[str]]:
    return [st.sampled_from(_FREE)] if all(_takes(cls, name, text) for text in _FREE) else []


def _takes(cls: type[Method], name: str, value: Any) -> bool:
    try:
        cls(**{name: value})
    except FoveateError:
        return False
    return True
