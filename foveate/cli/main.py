"""The `foveate` command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from foveate.errors import FoveateError, FoveateWarning


def build_app() -> typer.Typer:
    """The command line with all commands."""
    # What a command computes with, it imports when it runs: a help text waits for neither torch nor transformers.
    from foveate.cli import catalog, convert, demo, doctor, evaluate, plan, run, train, view, view_merge, view_text

    app = typer.Typer(
        name="foveate",
        help="Make an unmodified Hugging Face vision-language model faster and smaller by sparsifying its context.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.command("run")(run.run)
    app.command("plan")(plan.plan)
    app.command("methods")(catalog.methods)
    app.command("models")(catalog.models)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)
    app.add_typer(evaluate.app, name="eval")
    app.add_typer(train.app, name="train")
    app.add_typer(convert.app, name="convert")
    views = typer.Typer(help="Draw where a model looks, and what a plan keeps.", no_args_is_help=True)
    views.command("attention")(view.view_attention)
    views.command("kept")(view.view_kept)
    views.command("merge")(view_merge.view_merge)
    views.command("text")(view_text.view_text)
    app.add_typer(views, name="view")
    return app


# Typer carries its own copy of click from 0.25 on, and depends on click before: either way this is the class it raises.
_USAGE_ERRORS: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line on bad input, with 130 on Ctrl-C."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with _warnings_in_one_line(errors):
            code = build_app()(args=arguments, standalone_mode=False)
    except FoveateError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except _USAGE_ERRORS as error:
        errors.print(f"[bold red]error:[/] {_plain(error.format_message())}")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _warnings_in_one_line(errors: Console) -> Iterator[None]:
    """Our own warnings are for people here, not for programmers: no path and no line of code beside them."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, FoveateWarning):
            errors.print(f"[bold yellow]warning:[/] {_plain(str(message))}")
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _plain(text: str) -> str:
    """One line, with square brackets kept as they are."""
    return " ".join(text.split()).replace("[", r"\[")
