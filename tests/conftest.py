"""One thread: tiny models are slower on many, and timings of neighbours stay clean."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import settings

from tests.covering import mark_pairs
from tests.tiny import ALL_FAMILIES, FAMILIES

pytest_plugins = ["tests.matrix"]

TRANSFORMERS = tuple(int(part) for part in transformers.__version__.split(".")[:2])
ANCHORS = (None, *FAMILIES)

# A busy machine is no failure.
settings.register_profile("foveate", deadline=None)
settings.load_profile("foveate")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--anchors", action="store_true", help="run the three anchor families only")
    parser.addoption("--chromium", default="/usr/bin/chromium", help="the browser that runs the tests marked 'browser'")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    old = [item for item in items if any(marker.args[0] > TRANSFORMERS for marker in item.iter_markers("since"))]
    if old:
        config.hook.pytest_deselected(items=old)
        items[:] = [item for item in items if item not in old]
    broken = [item for item in items for marker in item.iter_markers("runs") if marker.args[0] not in ALL_FAMILIES]
    if broken:
        config.hook.pytest_deselected(items=broken)
        items[:] = [item for item in items if item not in broken]
    if config.getoption("--anchors"):
        family = [getattr(item, "callspec", None) and item.callspec.params.get("family") for item in items]
        config.hook.pytest_deselected(items=[item for item, name in zip(items, family, strict=True) if name not in ANCHORS])
        items[:] = [item for item, name in zip(items, family, strict=True) if name in ANCHORS]
    mark_pairs(items, ignored=("plan",) if config.getoption("--anchors") else ())
    config.pluginmanager.get_plugin("tests.matrix").remember(config, items)
    if config.option.markexpr:
        return
    skip = {"gpu": not torch.cuda.is_available(), "hub": True, "real": True}
    for item in items:
        for marker, off in skip.items():
            if off and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"-m {marker} was not asked for"))
