"""foveate train selector: a scorer in front of the language model, trained through the model's own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from foveate.cli import options
from foveate.cli import train_options as of_training
from foveate.cli.train_options import option

DEMO_SETTINGS: dict[str, Any] = {
    "width": 64,
    "heads": 2,
    "feedforward": 256,
    "predictor_rate": 1e-3,
    "base_rate": 3e-5,
}


def selector(
    out: of_training.Out = Path("runs/selector"),
    model: options.Model = None,
    data: of_training.Data = None,
    pictures: of_training.Pictures = None,
    eval_data: of_training.EvalData = None,
    query: Annotated[str | None, option("What it sees: none (the picture alone), or text (the question too)", "none")] = None,
    mode: Annotated[str | None, option("predictors (the model stays as it is), lora, or full", "predictors")] = None,
    masks: of_training.Masks = None,
    keep: Annotated[float | None, option("Share of a picture's tokens that stays in validation", "0.2")] = None,
    least_keep: Annotated[float | None, option("Least share that a pass of training keeps", "0.05")] = None,
    most_keep: Annotated[float | None, option("Most", "0.6")] = None,
    straight: Annotated[
        float | None, option("Share of the steps, the last ones, that keep or drop, nothing between", "0.3")
    ] = None,
    tau_start: of_training.TauStart = None,
    tau_end: of_training.TauEnd = None,
    predictor_rate: of_training.PredictorRate = None,
    base_rate: of_training.BaseRate = None,
    predictor_decay: of_training.PredictorDecay = None,
    weight_decay: of_training.WeightDecay = None,
    warmup: of_training.Warmup = None,
    width: Annotated[int | None, option("Width of the scorer", "256; demo 64")] = None,
    heads: of_training.Heads = None,
    feedforward: Annotated[int | None, option("Width of its MLPs", "1024; demo 256")] = None,
    blocks: Annotated[int | None, option("Its transformer blocks", "1")] = None,
    batch_size: of_training.BatchSize = None,
    accumulate: of_training.Accumulate = None,
    epochs: of_training.Epochs = None,
    steps: of_training.Steps = None,
    max_length: of_training.MaxLength = None,
    seed: of_training.Seed = None,
    precision: of_training.Precision = None,
    checkpointing: of_training.Checkpointing = False,
    max_grad_norm: of_training.MaxGradNorm = None,
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
    """Train a selector (VisionSelector's shape, arXiv 2510.16598): a scorer of visual tokens for every budget."""
    given = dict(locals())
    from foveate.train.selector import SelectorConfig

    of_training.train(SelectorConfig, given, DEMO_SETTINGS)
