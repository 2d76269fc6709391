"""Tiny models shared by the tests of the engine. A test that changes a model's config or mode makes its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests import tiny


@pytest.fixture(scope="session")
def model_of() -> Callable[..., nn.Module]:
    """`model_of(family, backend)` builds each model once."""
    known: dict[tuple[str, str], nn.Module] = {}

    def get(family: str, backend: str = "sdpa") -> nn.Module:
        if (family, backend) not in known:
            known[family, backend] = tiny.tiny_model(family, backend)
        return known[family, backend]

    return get
