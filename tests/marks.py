"""Marks that keep `make test` short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_and_more(values: Iterable[Any], short: int = 1) -> list[Any]:
    """The first `short` values for every run, the others for `make test-full`; tuples are values of several parameters."""
    every = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*value, marks=pytest.mark.full if number >= short else ()) for number, value in enumerate(every)]
