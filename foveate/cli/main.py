"""The `foveate` command."""

from __future__ import annotations

import sys

import click
import typer
from rich.console import Console

from foveate.errors import FoveateError

app = typer.Typer(
    name="foveate",
    help="Make an unmodified Hugging Face vision-language model faster and smaller by sparsifying its context.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _register() -> None:
    # Imported here so that `foveate --help` does not wait for torch where it need not.
    from foveate.cli import catalog, demo, doctor, plan, run

    app.command("run")(run.run)
    app.command("plan")(plan.plan)
    app.command("methods")(catalog.methods)
    app.command("models")(catalog.models)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line on bad input, with 130 on Ctrl-C."""
    _register()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        code = app(args=arguments, standalone_mode=False)
    except FoveateError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        errors.print(f"[bold red]error:[/] {_plain(error.format_message())}")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _plain(text: str) -> str:
    """One line, with square brackets kept as they are."""
    return " ".join(text.split()).replace("[", r"\[")
