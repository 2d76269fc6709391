"""foveate train dynamic-llava: predictors that say which tokens stay, and the model that lives with their choice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli import options, tables
from foveate.cli.settings import ATTENTION, ModelSettings
from foveate.errors import InputError

# Published for 7 to 13 billion parameters; what the demo model of 4.5 million wants instead.
DEMO_SETTINGS: dict[str, Any] = {
    "width": 64,
    "heads": 2,
    "feedforward": 256,
    "predictor_rate": 1e-3,
    "base_rate": 3e-5,
    "least_answer": 10,
}
VALIDATION_ROWS = 256
DEMO_STEPS = 600


def _share(text: str, default: str) -> Any:
    return typer.Option(help=f"{text} [{default}]", show_default=False)


def dynamic_llava(
    out: Annotated[Path, typer.Option(help="Folder for the result, checkpoints and log.")] = Path("runs/dynamic-llava"),
    model: options.Model = None,
    data: Annotated[
        Path | None,
        typer.Option(help="LLaVA's .json, or .jsonl with chat messages; for the demo model generated questions by default."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder that picture paths start from; that of the data.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Rows for --eval-every, as --data.")] = None,
    mode: Annotated[str | None, _share("full, lora, or predictors (the model stays as it is)", "full")] = None,
    masks: Annotated[str | None, _share("learned, or a control: random, none", "learned")] = None,
    layer: Annotated[int | None, _share("Decoder layer in front of which tokens are judged", "2")] = None,
    keep: Annotated[float | None, _share("Share of a picture's tokens that stays", "0.2")] = None,
    text_keep: Annotated[float | None, _share("Share of an answer's tokens that stays", "0.5")] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="No predictor for answers.")] = False,
    least_answer: Annotated[int | None, _share("Shorter answers are kept whole in training", "50; demo 10")] = None,
    penalty_weight: Annotated[float | None, _share("Lambda: weight of missing the shares", "100")] = None,
    tau_start: Annotated[float | None, _share("Temperature of the first step", "1")] = None,
    tau_end: Annotated[float | None, _share("Temperature after the last step", "0.1")] = None,
    predictor_rate: Annotated[float | None, _share("Learning rate of the predictors", "2e-4; demo 1e-3")] = None,
    base_rate: Annotated[float | None, _share("Learning rate of the rest", "5e-6; demo 3e-5")] = None,
    predictor_decay: Annotated[float | None, _share("Weight decay of the predictors", "0")] = None,
    weight_decay: Annotated[float | None, _share("Weight decay of the rest", "0")] = None,
    warmup: Annotated[float | None, _share("Share of the steps in which rates rise", "0.03")] = None,
    width: Annotated[int | None, _share("Width of the predictors", "512; demo 64")] = None,
    heads: Annotated[int | None, _share("Their attention heads", "8; demo 2")] = None,
    feedforward: Annotated[int | None, _share("Width of their MLPs", "2048; demo 256")] = None,
    blocks: Annotated[int | None, _share("Their transformer blocks", "2")] = None,
    batch_size: Annotated[int | None, _share("Rows per device and pass", "8")] = None,
    accumulate: Annotated[int | None, _share("Passes per step", "1")] = None,
    epochs: Annotated[int | None, _share("How often each row is seen", "1")] = None,
    steps: Annotated[int | None, _share("Steps instead of epochs", "demo 600")] = None,
    max_length: Annotated[int | None, _share("Columns of a row", "2048")] = None,
    seed: Annotated[int | None, _share("Of predictors, masks and order", "0")] = None,
    precision: Annotated[str | None, _share("bf16, fp32 or auto", "auto")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute activations: less memory.")] = False,
    max_grad_norm: Annotated[float | None, _share("Longer gradients are scaled down, 0 never", "1")] = None,
    calibrate: Annotated[int | None, _share("Held-out rows to set the shares of finished decisions by, 0 never", "256")] = None,
    lora_rank: Annotated[int | None, _share("Rank of the adapter", "64")] = None,
    lora_alpha: Annotated[int | None, _share("Scale of the adapter", "128")] = None,
    lora_dropout: Annotated[float | None, _share("Dropout in the adapter", "0.05")] = None,
    workers: Annotated[int | None, _share("Processes that read pictures", "0")] = None,
    log_every: Annotated[int | None, _share("Steps between two lines", "10")] = None,
    save_every: Annotated[int | None, _share("Steps between two checkpoints", "500")] = None,
    eval_every: Annotated[int | None, _share("Steps between two validations", "never")] = None,
    report_to: Annotated[str | None, _share("Also report to, e.g. wandb", "none")] = None,
    attn: Annotated[str | None, typer.Option(help=f"Attention: {', '.join(ATTENTION)}.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Larger pictures are shrunk to it.")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")] = False,
    smoke: options.Smoke = False,
) -> None:
    """Train Dynamic-LLaVA (arXiv 2412.00876): predictors of the tokens that stay, with or without the model."""
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("out", "model", "data", "pictures", "eval_data", "no_text", "resume", "smoke"):
        given.pop(name, None)
    loading = ModelSettings(**{name: given.pop(name) for name in ("attn", "max_pixels", "trust_remote_code") if name in given})
    if model is not None and data is None:
        raise InputError("--model needs --data: questions about generated pictures teach the demo model only")
    if no_text and text_keep is not None:
        raise InputError("--no-text and --text-keep contradict each other: give one of them")
    from foveate.train.config import FULL, DynamicLlavaConfig

    settings = ({"steps": DEMO_STEPS} if data is None else {}) | (DEMO_SETTINGS if model is None else {}) | given
    config = DynamicLlavaConfig(**settings | ({"text_keep": None} if no_text else {}))
    config = config.smoke() if smoke else config
    console = tables.make_console()
    with console.status("looking through the data"):
        rows, validation, name = _rows(data, eval_data, pictures, config)
    from foveate.cli.loading import load_model
    from foveate.train.run import train_dynamic_llava

    dtype = "float32" if config.mode == FULL else "auto"
    outcome = train_dynamic_llava(
        lambda: load_model(model, dtype, loading),
        rows,
        out,
        config,
        validation=validation,
        data=name,
        resume=resume,
        console=console,
    )
    if outcome.is_first_process:
        told = f"wrote {outcome.out}"
        if outcome.spec:
            model_there = f' --model "{outcome.model}"' if outcome.model is not None and config.mode == FULL else ""
            told += f'; use it with `foveate run PICTURE QUESTION{model_there} --plan "{outcome.spec}"`'
        console.print(told, soft_wrap=True)


def _rows(data: Path | None, eval_data: Path | None, pictures: Path | None, config: Any) -> tuple[Any, Any, str]:
    """Rows to train and to validate on, and their name."""
    if data is None:
        from foveate.demo.conversations import DemoConversations

        if eval_data is not None or pictures is not None:
            raise InputError("--eval-data and --pictures belong to --data")
        block = config.batch_size
        count = config.steps * config.accumulate * block * int(os.environ.get("WORLD_SIZE", "1"))
        rows = DemoConversations(count, block=block)
        return rows, DemoConversations(VALIDATION_ROWS, "validation", block=block), "generated questions about drawn pictures"
    from foveate.train.data import ConversationFile

    found = ConversationFile(data, pictures)
    validation = None if eval_data is None else ConversationFile(eval_data, pictures)
    return found, validation, f"{data.name}, {len(found)} rows"
