"""The `foveate` command."""

from __future__ import annotations

import sys

import typer

from foveate.cli.guard import TRACEBACK, guarded, split_traceback


def build_app() -> typer.Typer:
    """The command line with all commands."""
    # What a command computes with, it imports when it runs: a help text waits for neither torch nor transformers.
    from foveate.cli import catalog, convert, demo, doctor, evaluate, plan, run, train, view, view_merge, view_text

    app = typer.Typer(
        name="foveate",
        help="Make an unmodified Hugging Face vision-language model faster and smaller by sparsifying its context.",
        epilog=f"With {TRACEBACK}, anywhere, an error also shows where in the program it came up.",
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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; `foveate.cli.guard` says with which status."""
    given, with_traceback = split_traceback(sys.argv[1:] if arguments is None else arguments)
    sys.exit(guarded(lambda: build_app()(args=given, standalone_mode=False), with_traceback))
