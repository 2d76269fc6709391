"""The option that methods which rank by attention share."""

from __future__ import annotations

from foveate.errors import SpecError


def check_query(method: str, query: str) -> None:
    """Raise SpecError unless `query` is last, text, all or window:w."""
    if query not in ("last", "text", "all"):
        window_of(method, "query", query, "last, text, all or window:w, e.g. query=window:16")


def window_of(method: str, option: str, text: str, allowed: str) -> int:
    """Return the number of `window:number`, or raise SpecError that names what is allowed."""
    kind, _, number = text.partition(":")
    if kind != "window" or not (number.isascii() and number.isdigit() and len(number) <= 9) or int(number) < 1:
        raise SpecError(f"{method}({option}={text}): allowed are {allowed}")
    return int(number)
