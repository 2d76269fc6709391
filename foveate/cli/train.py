"""foveate train: the demo model, which takes hours on a CPU or a minute with --smoke, and predictors for any model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import options, tables, train_dynamic
from foveate.errors import InputError

app = typer.Typer(help="Train predictors that choose tokens, or the embedded demo model.", no_args_is_help=True)
app.command("dynamic-llava")(train_dynamic.dynamic_llava)


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; a stopped run in it is continued.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps with questions, after those of the vision encoder.")] = None,
    seed: Annotated[int, typer.Option(help="Decides weights and data.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")] = 1,
    precision: Annotated[str, typer.Option(help="bfloat16, or float32 for a CPU without AVX512-BF16 or AMX.")] = "bfloat16",
    smoke: options.Smoke = False,
) -> None:
    """Train the demo model from scratch on pictures that are drawn as it goes; progress is printed and logged."""
    if precision not in ("bfloat16", "float32"):
        raise InputError(f"--precision is bfloat16 or float32, not '{precision}'")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    from foveate.demo.training import DemoTrainingConfig, train_demo

    config = DemoTrainingConfig(out=out, seed=seed, threads=threads, precision=precision, smoke=smoke)
    if steps is not None and not smoke:
        if steps <= config.decay_steps:
            raise InputError(
                f"--steps {steps} leaves nothing before the learning rate falls, which takes {config.decay_steps} steps; "
                "use more, or --smoke for a test"
            )
        config = replace(config, steps=steps)
    folder = train_demo(config)
    tables.make_console().print(f"wrote {folder}; score it with `foveate eval demo --model {folder}`", soft_wrap=True)
