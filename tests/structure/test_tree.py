"""The tree keeps its promises: short files, a test and a twin for each method, no private paths, version ranges."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from foveate import families, methods, recipes, version
from foveate.core import registry

ROOT = Path(__file__).parents[2]
MOST_LINES = 400
# Methods without a plain-loop twin in tests/oracles, and why.
NO_TWIN = {
    "random": "the seeded draw is itself the contract; fairness is tested in its own file",
    "random_gate": "the seeded draw is itself the contract; fairness is tested in its own file",
}
PRIVATE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|farm|home|Users)/")


def tracked() -> list[Path]:
    """Files under version control; outside a checkout, those of the package and its tests."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode == 0 and found.stdout:
        return [ROOT / name for name in found.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for folder in ("foveate", "tests") for path in (ROOT / folder).rglob("*") if path.is_file()]


def test_no_file_is_longer_than_a_reader_s_patience():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in tracked() if path.suffix == ".py"}
    assert {str(path): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_tracked_file_holds_a_path_of_somebody_s_machine():
    hits = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(text.splitlines(), 1) if PRIVATE_PATH.search(line)]
    assert hits == []


def test_the_search_for_private_paths_finds_them():
    for text in ("/wo" + "rk/x", "see /fa" + "rm/a.py", 'open("/ho' + 'me/me")'):
        assert PRIVATE_PATH.search(text)
    for text in ("docs/work/x", "http://a.org/work", "framework/", "https://a.org/x/work/y"):
        assert not PRIVATE_PATH.search(text)


def own(package) -> list[str]:
    return registry.file_names(package)


@pytest.mark.parametrize("name", own(methods))
def test_every_method_has_a_test_file(name):
    assert (ROOT / "tests" / "methods" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", own(methods))
def test_every_method_has_a_plain_loop_twin_or_a_reason(name):
    functions = {
        node.name
        for path in (ROOT / "tests" / "oracles").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    has_twin = bool(functions & {f"{name}_kept", f"{name}_matrix"})
    assert has_twin != (name in NO_TWIN), "write a twin, or say why there is none"


@pytest.mark.parametrize(("package", "get"), [(methods, methods.get), (recipes, recipes.get), (families, families.get)])
def test_every_file_defines_what_its_name_says(package, get):
    for name in own(package):
        found = get(name)
        cls = found if isinstance(found, type) else type(found)
        assert cls.__module__ == f"{package.__name__}.{name}"


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_version_ranges_are_as_promised(project):
    needs = {re.split(r"[<>=!~\s]", text)[0]: text for text in project["project"]["dependencies"]}
    assert project["project"]["requires-python"] == ">=3.10"
    assert needs["torch"] == "torch>=2.6"
    assert needs["transformers"] == "transformers>=5.9"  # no upper bound
    assert not [text for text in needs.values() if re.search(r"[<~!]|==", text)]


def test_docstrings_strict_types_and_warnings_are_checked(project):
    tools = project["tool"]
    assert "D1" in tools["ruff"]["lint"]["select"]
    assert tools["mypy"]["strict"] is True
    assert tools["pytest"]["ini_options"]["filterwarnings"] == ["error"]


def test_the_entry_points_are_where_the_registry_looks(project):
    points = project["project"]["entry-points"]
    for package in (methods, families, recipes):
        assert package.__name__ in points


def test_the_tested_transformers_is_within_the_range():
    assert version.NEWEST_TESTED_TRANSFORMERS >= (5, 9)
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d*)?", version.__version__)
