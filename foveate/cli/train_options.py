"""What the commands that train predictors share: their options, and the training itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import tables
from foveate.cli.settings import ATTENTION, ModelSettings
from foveate.errors import InputError

if TYPE_CHECKING:
    from foveate.train.settings import TrainingConfig

VALIDATION_ROWS = 256
LEFT_OUT = object()  # a setting that is None, and not one that was not given
DEMO_STEPS = 600


def option(text: str, default: str) -> Any:
    """An option whose default the settings hold; None where it is not given."""
    return typer.Option(help=f"{text} [{default}]", show_default=False)


Out = Annotated[Path, typer.Option(help="Folder for the result, checkpoints and log.")]
Data = Annotated[
    Path | None,
    typer.Option(help="LLaVA's .json, or .jsonl with chat messages; for the demo model generated questions by default."),
]
Pictures = Annotated[Path | None, typer.Option(help="Folder that picture paths start from; that of the data.")]
EvalData = Annotated[Path | None, typer.Option(help="Rows for --eval-every, as --data.")]
Masks = Annotated[str | None, option("learned, or a control: random, none", "learned")]
TauStart = Annotated[float | None, option("Temperature of the first step", "1")]
TauEnd = Annotated[float | None, option("Temperature after the last step", "0.1")]
PredictorRate = Annotated[float | None, option("Learning rate of the predictors", "2e-4; demo 1e-3")]
BaseRate = Annotated[float | None, option("Learning rate of the rest", "5e-6; demo 3e-5")]
PredictorDecay = Annotated[float | None, option("Weight decay of the predictors", "0")]
WeightDecay = Annotated[float | None, option("Weight decay of the rest", "0")]
Warmup = Annotated[float | None, option("Share of the steps in which rates rise", "0.03")]
Heads = Annotated[int | None, option("Their attention heads", "8; demo 2")]
BatchSize = Annotated[int | None, option("Rows per device and pass", "8")]
Accumulate = Annotated[int | None, option("Passes per step", "1")]
Epochs = Annotated[int | None, option("How often each row is seen", "1")]
Steps = Annotated[int | None, option("Steps instead of epochs", "demo 600")]
MaxLength = Annotated[int | None, option("Columns of a row", "2048")]
Seed = Annotated[int | None, option("Of predictors, masks and order", "0")]
Precision = Annotated[str | None, option("bf16, fp32 or auto", "auto")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Recompute activations: less memory.")]
MaxGradNorm = Annotated[float | None, option("Longer gradients are scaled down, 0 never", "1")]
LoraRank = Annotated[int | None, option("Rank of the adapter", "64")]
LoraAlpha = Annotated[int | None, option("Scale of the adapter", "128")]
LoraDropout = Annotated[float | None, option("Dropout in the adapter", "0.05")]
Workers = Annotated[int | None, option("Processes that read pictures", "0")]
LogEvery = Annotated[int | None, option("Steps between two lines", "10")]
SaveEvery = Annotated[int | None, option("Steps between two checkpoints", "500")]
EvalEvery = Annotated[int | None, option("Steps between two validations", "never")]
ReportTo = Annotated[str | None, option("Also report to, e.g. wandb", "none")]
Attn = Annotated[str | None, typer.Option(help=f"Attention: {', '.join(ATTENTION)}.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Larger pictures are shrunk to it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")]


def train(kind: type[TrainingConfig], given: dict[str, Any], demo: dict[str, Any]) -> None:
    """Train, and say how to use what came of it.

    Args:
        kind: of the settings.
        given: the command's arguments: settings, and what belongs to every training.
        demo: settings for the demo model, where others are not given.
    """
    from foveate.train.settings import FULL

    places = {name: given.pop(name) for name in ("out", "model", "data", "pictures", "eval_data", "resume", "smoke")}
    model, data = places["model"], places["data"]
    given = {name: None if value is LEFT_OUT else value for name, value in given.items() if value is not None}
    loading = ModelSettings(**{name: given.pop(name) for name in ("attn", "max_pixels", "trust_remote_code") if name in given})
    if model is not None and data is None:
        raise InputError("--model needs --data: questions about generated pictures teach the demo model only")
    config = kind(**({"steps": DEMO_STEPS} if data is None else {}) | (demo if model is None else {}) | given)
    config = config.smoke() if places["smoke"] else config
    console = tables.make_console()
    with console.status("looking through the data"):
        rows, validation, name = _rows(data, places["eval_data"], places["pictures"], config)
    from foveate.cli.loading import load_model
    from foveate.train.run import train_predictors

    dtype = "float32" if config.mode == FULL else "auto"
    outcome = train_predictors(
        lambda: load_model(model, dtype, loading),
        rows,
        places["out"],
        config,
        validation=validation,
        data=name,
        resume=places["resume"],
        console=console,
    )
    if outcome.is_first_process:
        told = f"wrote {outcome.out}"
        if outcome.spec:
            model_there = f' --model "{outcome.model}"' if outcome.model is not None and config.mode == FULL else ""
            told += f'; use it with `foveate run PICTURE QUESTION{model_there} --plan "{outcome.spec}"`'
        console.print(told, soft_wrap=True)


def _rows(data: Path | None, eval_data: Path | None, pictures: Path | None, config: TrainingConfig) -> tuple[Any, Any, str]:
    """Rows to train and to validate on, and their name."""
    if data is None:
        from foveate.demo.conversations import DemoConversations

        if eval_data is not None or pictures is not None:
            raise InputError("--eval-data and --pictures belong to --data")
        block, steps = config.batch_size, config.steps or 0
        count = steps * config.accumulate * block * int(os.environ.get("WORLD_SIZE", "1"))
        rows = DemoConversations(count, block=block)
        return rows, DemoConversations(VALIDATION_ROWS, "validation", block=block), "generated questions about drawn pictures"
    from foveate.train.data import ConversationFile

    found = ConversationFile(data, pictures)
    validation = None if eval_data is None else ConversationFile(eval_data, pictures)
    return found, validation, f"{data.name}, {len(found)} rows"
