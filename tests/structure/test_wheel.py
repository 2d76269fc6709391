"""The wheel contains what runs: the package alone, with its data."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_package_alone():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    find_packages = pytest.importorskip("setuptools").find_packages
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = find_packages(str(ROOT), **project["tool"]["setuptools"]["packages"]["find"])
    assert {name.partition(".")[0] for name in found} == {"foveate"}
    assert {"foveate.demo", "foveate.cli"} <= set(found)
    data = {
        path for pattern in project["tool"]["setuptools"]["package-data"]["foveate"] for path in ROOT.glob(f"foveate/{pattern}")
    }
    assert ROOT / "foveate/demo/assets/model/model.safetensors" in data and all(path.exists() for path in data)


def test_the_package_imports_nothing_that_stays_behind():
    for path in (ROOT / "foveate").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for folder in ("demo_model", "benchmarks", "tests"):
            assert f"from {folder}" not in text and f"import {folder}" not in text, path
