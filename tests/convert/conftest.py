"""An official checkpoint and what was made of it; the runner for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.convert import convert_dynamic_llava
from tests.cli.conftest import command
from tests.convert import official

__all__ = ["command"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official checkpoint in float32."""
    return official.write(tmp_path_factory.mktemp("official") / "src", official.weights(dtype=torch.float32), official.config())


@pytest.fixture(scope="module")
def made(plain: Path) -> Any:
    return convert_dynamic_llava(str(plain), plain.parent / "dst", most_bytes=50_000)
