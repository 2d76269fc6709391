"""foveate train: predictors for any model."""

from __future__ import annotations

import typer

from foveate.cli import train_dynamic, train_selector

app = typer.Typer(help="Train predictors that choose tokens.", no_args_is_help=True)
app.command("dynamic-llava")(train_dynamic.dynamic_llava)
app.command("selector")(train_selector.selector)
