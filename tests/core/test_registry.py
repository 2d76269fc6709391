"""Classes of other packages: found by entry point, refused when their name in specs would not read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from foveate import methods
from foveate.core import registry
from tests.oracles.broken import Honest


@dataclass
class Point:
    target: Any

    def load(self) -> Any:
        return self.target


@pytest.fixture
def outside(monkeypatch):
    points: dict[str, Point] = {}
    monkeypatch.setattr(registry, "entry_point_targets", lambda group: points)
    return points


def test_a_method_of_another_package_is_found_by_its_entry_point(outside):
    outside["broken"] = Point(Honest)  # the module is tests.oracles.broken
    assert methods.get("broken") is Honest
    assert "broken" in methods.names()


def test_an_entry_point_whose_name_is_not_the_module_s_is_refused(outside):
    outside["honest"] = Point(Honest)
    with pytest.raises(TypeError, match="Honest must live in a module called honest, the name in specs"):
        methods.get("honest")


@pytest.mark.parametrize("target", [dict, 3])
def test_an_entry_point_to_something_else_is_refused(outside, target):
    outside["other"] = Point(target)
    with pytest.raises(TypeError, match="must name a subclass of Method"):
        methods.get("other")
