"""`python -m demo_model train`, which takes hours on a CPU or a minute with --smoke, and `release`, which ships the result."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from demo_model.config import DemoTrainingConfig
from demo_model.release import release
from demo_model.training import train_demo
from foveate.cli.guard import guarded
from foveate.cli.options import Smoke
from foveate.errors import InputError

app = typer.Typer(help="Train the demo model, and put it into the package.", no_args_is_help=True, add_completion=False)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; a stopped run in it is continued.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps with questions, behind those of the vision encoder.")] = None,
    seed: Annotated[int, typer.Option(help="Decides weights and data.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")] = 1,
    precision: Annotated[str, typer.Option(help="bfloat16, or float32 for a CPU without AVX512-BF16 or AMX.")] = "bfloat16",
    start: Annotated[
        Path | None, typer.Option(help="Demo model with pictures of 96 pixels: go on from it with 192, on a detailed world.")
    ] = None,
    smoke: Smoke = False,
) -> None:
    """Train on pictures that are drawn as it goes, from scratch or from a smaller model; progress is printed and logged."""
    if precision not in ("bfloat16", "float32"):
        raise InputError(f"--precision is bfloat16 or float32, not '{precision}'")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    config = DemoTrainingConfig(out=out, seed=seed, threads=threads, precision=precision, smoke=smoke)
    if start is not None:
        config = config.continued(start)
    if steps is not None and not smoke:
        if steps <= config.decay_steps:
            raise InputError(
                f"--steps {steps} leaves nothing before the learning rate falls, which takes {config.decay_steps} steps; "
                "use more, or --smoke for a test"
            )
        config = replace(config, steps=steps)
    folder = train_demo(config)
    typer.echo(f"wrote {folder}; score it with `foveate eval demo --model {folder}`")


@app.command("release")
def release_run(
    run: Annotated[Path, typer.Option(help="Folder of a finished training.")] = Path("runs/demo"),
    questions: Annotated[int, typer.Option(min=1, help="Questions per task of the evaluation.")] = 1000,
    note: Annotated[str, typer.Option(help="Sentence about the run for the model card.")] = "",
) -> None:
    """Evaluate a finished model and write it, its card and the example pictures into the package."""
    release(run, questions, note)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(guarded(lambda: app(args=arguments, standalone_mode=False)))


if __name__ == "__main__":
    main()
