"""What docs/training.md and the command's help say is what a training does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from foveate.cli.train_dynamic import DEMO_SETTINGS, DEMO_STEPS, dynamic_llava
from foveate.train.config import DynamicLlavaConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def options() -> dict[str, str]:
    """Help by option, without its dashes."""
    app = typer.Typer()
    app.command()(dynamic_llava)
    command: Any = typer.main.get_command(app)
    return {parameter.name: parameter.help or "" for parameter in command.params}


def test_every_option_that_the_page_names_exists():
    named = set(re.findall(r"--([a-z][a-z_-]*)", PAGE))
    elsewhere = {"plan", "num_processes", "nproc_per_node", "standalone", "help"}
    assert named - elsewhere <= {name.replace("_", "-") for name in options()}


@pytest.mark.parametrize("name", [name for name, text in options().items() if re.search(r"\[(.*)\]$", text)])
def test_the_help_says_the_defaults(name):
    said = re.search(r"\[(.*)\]$", options()[name])
    assert said is not None
    published, _, demo = said[1].partition("demo ")
    published = published.strip("; ")
    default = getattr(DynamicLlavaConfig(), name)
    if published == "never" or not published:
        assert default is None
    else:
        assert type(default)(published) == default
    expected = (DEMO_SETTINGS | {"steps": DEMO_STEPS}).get(name)
    assert (float(demo) if demo else None) == expected


def test_every_setting_is_an_option():
    assert set(vars(DynamicLlavaConfig())) <= set(options())
