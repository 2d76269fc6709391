"""One thread: tiny models are slower on many, and timings of neighbours stay clean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["tests.matrix"]

# A busy machine is no failure.
settings.register_profile("foveate", deadline=None)
settings.load_profile("foveate")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    skip = {"gpu": not torch.cuda.is_available(), "hub": True}
    for item in items:
        for marker, off in skip.items():
            if off and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"-m {marker} was not asked for"))
