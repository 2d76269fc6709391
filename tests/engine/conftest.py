"""Tiny models shared by the tests of the engine. A test that changes a model's config or mode makes its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests import tiny
from tests.spies import settled_state


@pytest.fixture(scope="session")
def model_of() -> Callable[..., nn.Module]:
    """`model_of(family, backend)` builds each model once."""
    known: dict[tuple[str, str], nn.Module] = {}

    def get(family: str, backend: str = "sdpa") -> nn.Module:
        if (family, backend) not in known:
            model = known[family, backend] = tiny.tiny_model(family, backend)
            maker = tiny.Maker(family)
            settled_state(model, maker.inputs(tiny.ragged_rows(maker, 1)))
        return known[family, backend]

    return get
