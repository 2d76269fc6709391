"""foveate train: predictors for any model."""

from __future__ import annotations

import typer

from foveate.cli import train_dynamic

app = typer.Typer(help="Train predictors that choose tokens.", no_args_is_help=True)
app.callback()(lambda: None)  # a single command keeps its name
app.command("dynamic-llava")(train_dynamic.dynamic_llava)
