"""What the README says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foveate.api.capability_table import packaged
from foveate.cli.catalog import markdown_table
from foveate.spec import parse

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_family_table_is_the_generated_one():
    shown = re.search(r"<!-- families -->\n(.*?)\n<!-- /families -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1] == markdown_table(packaged().families), "run `foveate models --markdown` and paste its table"


@pytest.mark.parametrize("spec", re.findall(r'"((?:fastv|random|uniform|pool|staged)\([^"]*\))"', README))
def test_every_spec_in_quotes_can_be_read(spec):
    parse(spec)


def test_the_plan_table_can_be_read():
    specs = re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)
    assert len(specs) >= 8
    for spec in specs:
        if "(" in spec and "..." not in spec:
            parse(spec.replace(r"\|", "|"))


def test_the_two_commands_come_first():
    assert README.index("make demo") < README.index("make test") < README.index("## ")


def test_pictures_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[2] / path).is_file(), path
