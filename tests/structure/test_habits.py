"""What the forge reads is well formed, and names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foveate.version import __version__

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml")
FORMS = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_every_form_is_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_workflows_run_targets_that_exist():
    files = [path.read_text(encoding="utf-8") for path in ROOT.glob(".github/workflows/*.yml")]
    called = {target for text in files for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert {"check", "test", "coverage"} <= called
    assert called - TARGETS <= {"docs"}


def test_citation_and_changelog_name_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]
