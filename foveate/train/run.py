"""A training from start, or from where it stopped, to the folder that plans load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from foveate.engine.carrying import unwrap
from foveate.errors import InputError
from foveate.families import family_for
from foveate.files.folders import appearing, locked
from foveate.files.paths import refused, user_path
from foveate.files.reading import read_json
from foveate.files.writing import check_output_folder, make_folder, write_file
from foveate.predictors import save_predictors
from foveate.train.calibration import calibrate
from foveate.train.checkpoints import last_checkpoint
from foveate.train.collator import ChatCollator
from foveate.train.config import DynamicLlavaConfig
from foveate.train.data import Conversations
from foveate.train.module import SoftModel
from foveate.train.parts import is_learned, predictor_config, require
from foveate.train.settings import LORA, PREDICTORS, TrainingConfig
from foveate.version import __version__

RUN, MODEL, ADAPTER = "run.json", "model", "adapter"


@dataclass(frozen=True)
class Outcome:
    """What a training left.

    Attributes:
        out: the folder.
        spec: the plan that uses it, "" for a control.
        model: the folder of the trained model or adapter, None where the base is unchanged.
        steps: done in all.
        left_out: rows whose pictures are missing, and rows whose pictures could not be read.
        scores: of the last log and the last validation.
        is_first_process: the one that wrote it.
    """

    out: Path
    spec: str
    model: Path | None
    steps: int
    left_out: tuple[int, int]
    scores: dict[str, float]
    is_first_process: bool = True


def train_predictors(
    load: Callable[[], tuple[Any, Any]],
    rows: Conversations,
    out: Path,
    config: TrainingConfig,
    *,
    validation: Conversations | None = None,
    data: str = "",
    resume: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train, and write predictors (and a model or an adapter beside them) to a folder.

    Args:
        load: returns (model, processor); called when everything else was found to be in order.
        rows: what to train on.
        out: the folder; empty, or that of a run to resume.
        config: of the training.
        validation: rows for `config.eval_every`.
        data: says in the provenance what `rows` is.
        resume: continue from the newest checkpoint in `out`. The result is that of a run which never stopped.
        console: takes the progress.

    Raises:
        FoveateError: in one line, before anything is written: a package is missing, `out` is taken, the settings are not
            those of the run to resume.
    """
    require("accelerate", *(["peft"] if config.mode == LORA else []))
    if config.eval_every is not None and validation is None:
        raise InputError("--eval-every needs rows to validate on: give --eval-data")
    from foveate.train.trainer import check_report

    check_report(config.report_to)
    out = user_path(out)
    first = int(os.environ.get("RANK", "0")) == 0  # the others may find what the first one has written since
    if first:
        check_output_folder("--out", out)
        make_folder(out.absolute().parent)  # of the lock
    with locked(out) if first else nullcontext():
        checkpoint = last_checkpoint(out) if resume else None
        if first:
            _check_folder(out, config, data, resume)
        return _train(load, rows, out, config, validation, data, checkpoint, console or Console(highlight=False))


def _train(
    load: Callable[[], tuple[Any, Any]],
    rows: Conversations,
    out: Path,
    config: TrainingConfig,
    validation: Conversations | None,
    data: str,
    checkpoint: Path | None,
    console: Console,
) -> Outcome:
    from foveate.train import trainer as training

    model, processor = load()
    placeholders = family_for(unwrap(model).config).placeholder_ids(unwrap(model).config)
    collator = ChatCollator(processor, list(placeholders.values()), config.max_length)
    collator([rows[0]])  # what cannot work says so now
    soft = SoftModel(model, config)
    arguments = training.arguments(config, out, config.eval_every is not None)
    arguments.max_steps = config.steps_for(len(rows), arguments.world_size)
    trainer = training.PredictorTrainer(
        soft,
        config,
        console,
        args=arguments,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=validation,
    )
    if trainer.is_world_process_zero():
        make_folder(out)
        write_file(out / RUN, json.dumps({"method": config.name, "data": data, "config": asdict(config)}, indent=2) + "\n")
    done = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    scores = _scores(trainer.state.log_history)
    calibration = {}
    calibrates = isinstance(config, DynamicLlavaConfig) and config.calibrate and is_learned(config)
    if calibrates and trainer.is_world_process_zero():  # who writes
        calibration = calibrate(trainer, validation or rows, collator)
    if soft.attachment is not None:
        soft.attachment.detach()
    unreadable = trainer.accelerator.reduce(broken_rows(rows).to(arguments.device, torch.long), "sum").count_nonzero()
    left_out = getattr(rows, "missing", 0), int(unreadable)
    provenance = {
        "foveate": __version__,
        "method": config.paper,
        "data": data,
        "rows": len(rows),
        "steps": done.global_step,
        "rows_left_out": sum(left_out),
        "scores": scores,
        "calibration": calibration,
        "settings": asdict(config),
    }
    saved = None
    if trainer.is_world_process_zero():
        saved = _write(out, soft, processor, config, provenance)
        if any(left_out):
            console.print(
                f"rows left out: {left_out[0]} whose pictures are missing, {left_out[1]} whose pictures cannot be read"
            )
    trainer.accelerator.wait_for_everyone()
    spec = config.spec(out) if is_learned(config) else ""
    return Outcome(out, spec, saved, done.global_step, left_out, scores, trainer.is_world_process_zero())


def broken_rows(rows: Conversations) -> torch.Tensor:
    """[rows] uint8, 1 at rows whose pictures this process could not read."""
    known = getattr(rows, "broken", None)
    return known if isinstance(known, torch.Tensor) else torch.zeros(1, dtype=torch.uint8)


def _check_folder(out: Path, config: TrainingConfig, data: str, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    taken = out.is_dir() and any(out.iterdir())
    if taken and not resume:
        raise InputError(f"--out {out} is not empty: continue its run with --resume, or name another folder")
    if not resume:
        return
    try:
        stored = read_json(out / RUN)
        before, used, method = dict(stored["config"]), stored["data"], stored.get("method", DynamicLlavaConfig.name)
    except (ValueError, KeyError, TypeError):  # an InputError is a ValueError
        raise InputError(f"--resume: {out} holds no run of this command") from None
    if method != config.name:
        raise InputError(f"--resume: {out} holds a run of {method}, not of {config.name}")
    changed = config.differences(before)
    if changed or used != data:
        name = changed[0] if changed else "data"
        was, now = (before.get(name), asdict(config)[name]) if changed else (used, data)
        raise InputError(f"--resume: that run has {name} {was}, not {now}; a resumed run keeps its settings")


def _write(out: Path, soft: SoftModel, processor: Any, config: TrainingConfig, provenance: dict[str, Any]) -> Path | None:
    """The finished folder; returns that of the model or the adapter."""
    saved = None
    if config.mode != PREDICTORS:
        saved = out / (ADAPTER if config.mode == LORA else MODEL)
        with appearing(saved) as partial, refused("write", saved):
            soft.model.save_pretrained(partial)
            processor.save_pretrained(partial)
    if is_learned(config):
        changed = {} if saved is None else {"base_model": f"the {saved.name} beside them"}
        described = predictor_config(unwrap(soft.model), config, provenance=provenance, **changed)
        save_predictors(out, described, dict(soft.predictors.items()))
    else:
        write_file(out / "control.json", json.dumps(provenance, indent=2) + "\n")
    return saved


def _scores(history: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers of the last log and the last validation."""
    scores: dict[str, float] = {}
    for entry in history:
        if "loss" in entry or any(name.startswith("eval_") for name in entry):
            scores |= {name: float(value) for name, value in entry.items() if name not in ("epoch", "step")}
    return scores
