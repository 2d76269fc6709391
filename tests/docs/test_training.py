"""What docs/training.md and the command's help say is what a training does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from foveate.cli import train_dynamic, train_selector
from foveate.cli.train_options import DEMO_STEPS
from foveate.train.config import DynamicLlavaConfig
from foveate.train.selector import SelectorConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")

# Of each command, its settings and those for the demo model.
COMMANDS: dict[str, Any] = {
    "dynamic-llava": (train_dynamic.dynamic_llava, DynamicLlavaConfig(), train_dynamic.DEMO_SETTINGS),
    "selector": (train_selector.selector, SelectorConfig(), train_selector.DEMO_SETTINGS),
}


def options(name: str) -> dict[str, str]:
    """Help by option, without its dashes."""
    app = typer.Typer()
    app.command()(COMMANDS[name][0])
    command: Any = typer.main.get_command(app)
    return {parameter.name: parameter.help or "" for parameter in command.params}


WITH_DEFAULTS = [
    (command, name) for command in COMMANDS for name, text in options(command).items() if re.search(r"\[(.*)\]$", text)
]


def test_every_option_that_the_page_names_exists():
    named = set(re.findall(r"--([a-z][a-z_-]*)", PAGE))
    elsewhere = {"plan", "num_processes", "nproc_per_node", "standalone", "help"}
    known = {name.replace("_", "-") for command in COMMANDS for name in options(command)}
    assert named - elsewhere <= known


@pytest.mark.parametrize(("command", "name"), WITH_DEFAULTS)
def test_the_help_says_the_defaults(command, name):
    _, settings, demo_settings = COMMANDS[command]
    said = re.search(r"\[(.*)\]$", options(command)[name])
    assert said is not None
    published, _, demo = said[1].partition("demo ")
    published = published.strip("; ")
    default = getattr(settings, name)
    if published == "never" or not published:
        assert default is None
    else:
        assert type(default)(published) == default
    expected = (demo_settings | {"steps": DEMO_STEPS}).get(name)
    assert (float(demo) if demo else None) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_an_option(command):
    assert set(vars(COMMANDS[command][1])) <= set(options(command))
