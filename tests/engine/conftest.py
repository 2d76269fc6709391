"""Tiny models shared by the tests of the engine. A test that changes a model's config or mode makes its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests import tiny


@pytest.fixture(scope="session")
def model_of() -> Callable[..., nn.Module]:
    """`model_of(family, backend)` builds each model once."""
    known: dict[tuple[str, str], nn.Module] = {}

    def get(family: str, backend: str = "sdpa") -> nn.Module:
        if (family, backend) not in known:
            model = known[family, backend] = tiny.tiny_model(family, backend)
            # transformers installs hooks of its own on the first call that captures something; tests compare hooks.
            maker = tiny.Maker(family)
            inputs = maker.inputs(tiny.ragged_rows(maker, 1))
            with torch.no_grad():
                model(**inputs, output_hidden_states=True)
            tiny.generate(model, inputs, tokens=1)
        return known[family, backend]

    return get
