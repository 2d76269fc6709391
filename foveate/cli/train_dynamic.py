"""foveate train dynamic-llava: predictors that say which tokens stay, and the model that lives with their choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli import options
from foveate.cli import train_options as of_training
from foveate.cli.train_options import option
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


def dynamic_llava(
    out: of_training.Out = Path("runs/dynamic-llava"),
    model: options.Model = None,
    data: of_training.Data = None,
    pictures: of_training.Pictures = None,
    eval_data: of_training.EvalData = None,
    mode: Annotated[str | None, option("full, lora, or predictors (the model stays as it is)", "full")] = None,
    masks: of_training.Masks = None,
    layer: Annotated[int | None, option("Decoder layer in front of which tokens are judged", "2")] = None,
    keep: Annotated[float | None, option("Share of a picture's tokens that stays", "0.2")] = None,
    text_keep: Annotated[float | None, option("Share of an answer's tokens that stays", "0.5")] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="No predictor for answers.")] = False,
    least_answer: Annotated[int | None, option("Shorter answers are kept whole in training", "50; demo 10")] = None,
    penalty_weight: Annotated[float | None, option("Lambda: weight of missing the shares", "100")] = None,
    tau_start: of_training.TauStart = None,
    tau_end: of_training.TauEnd = None,
    predictor_rate: of_training.PredictorRate = None,
    base_rate: of_training.BaseRate = None,
    predictor_decay: of_training.PredictorDecay = None,
    weight_decay: of_training.WeightDecay = None,
    warmup: of_training.Warmup = None,
    width: Annotated[int | None, option("Width of the predictors", "512; demo 64")] = None,
    heads: of_training.Heads = None,
    feedforward: Annotated[int | None, option("Width of their MLPs", "2048; demo 256")] = None,
    blocks: Annotated[int | None, option("Their transformer blocks", "2")] = None,
    batch_size: of_training.BatchSize = None,
    accumulate: of_training.Accumulate = None,
    epochs: of_training.Epochs = None,
    steps: of_training.Steps = None,
    max_length: of_training.MaxLength = None,
    seed: of_training.Seed = None,
    precision: of_training.Precision = None,
    checkpointing: of_training.Checkpointing = False,
    max_grad_norm: of_training.MaxGradNorm = None,
    calibrate: Annotated[int | None, option("Held-out rows to set the shares of finished decisions by, 0 never", "256")] = None,
    lora_rank: of_training.LoraRank = None,
    lora_alpha: of_training.LoraAlpha = None,
    lora_dropout: of_training.LoraDropout = None,
    workers: of_training.Workers = None,
    log_every: of_training.LogEvery = None,
    save_every: of_training.SaveEvery = None,
    eval_every: of_training.EvalEvery = None,
    report_to: of_training.ReportTo = None,
    attn: of_training.Attn = None,
    max_pixels: of_training.MaxPixels = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: of_training.Resume = False,
    smoke: options.Smoke = False,
) -> None:
    """Train Dynamic-LLaVA (arXiv 2412.00876): predictors of the tokens that stay, with or without the model."""
    given = dict(locals())
    if given.pop("no_text"):
        if text_keep is not None:
            raise InputError("--no-text and --text-keep contradict each other: give one of them")
        given["text_keep"] = of_training.LEFT_OUT
    from foveate.train.config import DynamicLlavaConfig

    of_training.train(DynamicLlavaConfig, given, DEMO_SETTINGS)
