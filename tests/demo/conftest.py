from __future__ import annotations

from typing import Any

import pytest

from demo_model.model import DemoModelConfig, build_model
from demo_model.processor import build_processor

TINY = DemoModelConfig(64, 1, 1, 64, 64, 2, 1, 64)


@pytest.fixture(scope="session")
def processor() -> Any:
    return build_processor(sample_count=300)


@pytest.fixture(scope="session")
def tiny_model(processor: Any) -> Any:
    return build_model(processor.tokenizer, TINY).eval()
