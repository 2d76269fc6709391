"""The wheel contains what runs: the package alone, with its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure.layers import imports

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
        for folder in ("demo_model", "real_weights", "benchmarks", "tests"):
            assert f"from {folder}" not in text and f"import {folder}" not in text, path


BESIDE = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/*.py")}
for folder in ("demo_model", "real_weights"):
    BESIDE |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.glob(f"{folder}/*.py")}


def reaches_inside(source: str) -> list[str]:
    """Imports of tests, of the engine, and of names that are private to the package."""
    out = []
    for found in imports(source):
        parts = [*found.module.split("."), *found.names]
        if parts[0] == "tests" or (
            parts[0] == "foveate" and ("engine" in parts or any(part.startswith("_") for part in parts))
        ):
            out.append(f"{found.line}: {'.'.join(parts)}")
    return out


@pytest.mark.parametrize("path", BESIDE)
def test_measurements_and_training_use_what_anybody_may(path):
    assert reaches_inside(BESIDE[path]) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests import tiny",
        "from foveate.engine.compat import CACHE",
        "from foveate import engine",
        "def f():\n    import foveate.engine.observe",
        "from foveate.families._base import Family",
        "from foveate.api.cost import _check_count",
    ],
)
def test_a_planted_import_from_inside_is_found(source):
    assert len(reaches_inside(source)) == 1
    assert reaches_inside("import foveate\nfrom benchmarks._run import run\nfrom foveate.api import attach") == []
