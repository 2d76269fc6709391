"""Tiny models shared by the tests of the engine. A test that changes a model's config or mode makes its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests import examples, tiny
from tests.spies import settled_state
from tests.trained import random_predictors


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


@pytest.fixture(scope="session")
def predictors_of(model_of: Callable[..., nn.Module], tmp_path_factory: Any) -> Callable[[str], str]:
    """`predictors_of(family)` is a folder with random predictors for its model."""
    folders: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in folders:
            maker = tiny.Maker(family)
            inputs, layer = maker.inputs(tiny.ragged_rows(maker, 3)), tiny.FIRST_LAYER[family]
            folder, options = tmp_path_factory.mktemp(family), dict(layer=layer, instruct_keep=0.5)
            folders[family], _ = random_predictors(folder, model_of(family), inputs=inputs, **options)
        return folders[family]

    return get


@pytest.fixture(scope="session")
def placed(predictors_of: Callable[[str], str]) -> Callable[[str, str], str]:
    """`placed(text, family)` puts what is a family's own into a text of tests/examples.py."""
    return lambda text, family: examples.filled(text, family, predictors_of(family) if "{path}" in text else "")
