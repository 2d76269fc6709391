"""The training itself: Hugging Face's Trainer with a method's own loss, two learning rates and a temperature that falls."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from foveate.errors import InputError
from foveate.files.writing import write_file
from foveate.train.checkpoints import WEIGHTS, read_from, written_whole
from foveate.train.module import SoftModel
from foveate.train.settings import TrainingConfig

LOG = "log.jsonl"
# What is averaged over passes between two logs.
_WATCHED = ("loss", "penalty", "image_keep", "text_keep")


def arguments(config: TrainingConfig, out: Path, validates: bool) -> TrainingArguments:
    """What the Trainer is told, but for the number of steps."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.base_rate,
        lr_scheduler_type="cosine",
        max_grad_norm=0.0,  # clipped by parts, below
        seed=config.seed,
        bf16=computes_in_bf16(config),
        use_cpu=not on_gpu,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        prediction_loss_only=True,
        logging_steps=config.log_every,
        logging_first_step=True,
        save_steps=config.save_every,
        save_total_limit=2,
        eval_strategy="steps" if validates else "no",
        eval_steps=config.eval_every,
        report_to=config.report_to,
        disable_tqdm=True,
    )


def check_report(name: str) -> None:
    """Refuse a program to report to that the Trainer does not know, or that is not installed.

    Raises:
        InputError: with the choices.
    """
    if name != "none" and name not in get_available_reporting_integrations():
        known = ", ".join(sorted({"none", *INTEGRATION_TO_CALLBACK}))
        raise InputError(f"--report-to {name}: it is not installed, or not known; known are {known}")


def computes_in_bf16(config: TrainingConfig) -> bool:
    """Whether passes are computed in bfloat16."""
    if config.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"


class ClipByParts(TrainerCallback):
    """Scales long gradients down, of the base and of the predictors each on its own.

    A dropped token that attention wants badly has a gradient many thousand times longer than any other (the weight in front
    of its exp(score) is a zero that could be a one). Under one common norm the base would stand still whenever that happens.
    """

    def __init__(self, model: SoftModel, norm: float) -> None:
        self.parts, self.norm = model.groups(), norm
        self.norms: dict[str, list[Tensor]] = defaultdict(list)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer when the gradients of a step are complete."""
        for name, part in self.parts.items():
            if part:
                norm = nn.utils.clip_grad_norm_([parameter for _, parameter in part], self.norm or math.inf)
                self.norms[f"{name}_grad"].append(norm.detach())

    def medians(self) -> dict[str, float]:
        """Median norms since the last call, before clipping; a mean would show nothing but the longest."""
        found = {name: float(torch.stack(norms).median()) for name, norms in self.norms.items()}
        self.norms.clear()
        return found


class PredictorTrainer(Trainer):
    """Trains a `SoftModel`.

    Loss: the model's, plus what its method's training makes it pay (Dynamic-LLaVA: `penalty_weight` times Eq. 10 as the
    authors' code has it), in training. In validation decisions are hard and the loss is the model's alone.

    Args:
        model: what trains.
        config: of the training.
        console: takes a line for each log.
        args, data_collator, train_dataset, eval_dataset: as for Trainer.
    """

    def __init__(self, model: SoftModel, config: TrainingConfig, console: Console, **more: Any) -> None:
        super().__init__(model=model, **more)
        self.remove_callback(PrinterCallback)
        self.soft_model, self.config, self.console = model, config, console
        self.clip = ClipByParts(model, config.max_grad_norm)
        self.add_callback(self.clip)
        self._watched: dict[bool, dict[str, list[Tensor]]] = {True: defaultdict(list), False: defaultdict(list)}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One pass; decisions are made as befits the step."""
        if self.soft_model.soft is not None:
            self.config.at_step(self.soft_model.soft, self.state.global_step, self.state.max_steps)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The loss of a pass; see the class."""
        outputs = model(**inputs)
        watched = self._watched[model.training]
        for name in _WATCHED:
            watched[name].append(outputs[name].detach())
        loss = outputs["loss"]
        if model.training and self.config.penalty_factor:
            loss = loss + self.config.penalty_factor * outputs["penalty"]
        return (loss, outputs) if return_outputs else loss

    optimizer: Any

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with a group for the base, one for its norms and biases, and one for the predictors."""
        if self.optimizer is None:
            groups = self.soft_model.groups()
            config = self.config
            base = [part for _, part in groups["base"]]
            made = [
                {
                    "params": [part for part in base if part.ndim > 1],
                    "lr": config.base_rate,
                    "weight_decay": config.weight_decay,
                },
                {"params": [part for part in base if part.ndim <= 1], "lr": config.base_rate, "weight_decay": 0.0},
            ]
            for wide, decay in ((True, config.predictor_decay), (False, 0.0)):
                parts = [part for _, part in groups["predictors"] if (part.ndim > 1) == wide]
                made.append({"params": parts, "lr": config.predictor_rate, "weight_decay": decay})
            made = [group for group in made if group["params"]]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(made, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Both rates rise for `warmup` of the steps and fall as a cosine."""
        self.args.warmup_steps = math.ceil(self.config.warmup * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add shares, temperature and rates to a log, write it to the file and print it."""
        validates = any(name.startswith("eval_") for name in logs)
        means = self._means(not validates)
        if "loss" in logs or validates:
            prefix = "eval_" if validates else ""
            logs |= {prefix + ("model_loss" if name == "loss" else name): value for name, value in means.items()}
        if "loss" in logs:
            for name in ("learning_rate", "grad_norm"):  # of the first group, and of what is clipped already
                logs.pop(name, None)
            logs |= self.clip.medians() | self._rates()
            if self.soft_model.soft is not None:
                logs["tau"] = self.soft_model.soft.tau
        super().log(logs, start_time)
        if self.is_world_process_zero():
            lines = [json.dumps(entry) + "\n" for entry in self.state.log_history]
            write_file(Path(self.args.output_dir) / LOG, "".join(lines))
            self.console.print(_line(logs, self.state.global_step, self.state.max_steps), soft_wrap=True)

    def _means(self, training: bool) -> dict[str, float]:
        """Means since the last log, over all processes; without what was never judged."""
        watched = self._watched[training]
        if not watched:
            return {}
        table = torch.stack([torch.stack(watched[name]) for name in _WATCHED]).double()  # [names, passes]
        watched.clear()
        sums = torch.stack([table.nansum(1), (~table.isnan()).double().sum(1)])
        sums = self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()
        return {name: float(sums[0, n] / sums[1, n]) for n, name in enumerate(_WATCHED) if sums[1, n]}

    def _rates(self) -> dict[str, float]:
        rates = self.lr_scheduler.get_last_lr()
        known = self.soft_model.groups()
        out = {}
        if known["base"]:
            out["base_rate"] = rates[0]
        if known["predictors"]:
            out["predictor_rate"] = rates[-1]
        return out

    # Checkpoints: what trains in one file; optimizer, schedule, step and random numbers are the Trainer's own.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.soft_model.trained_state(), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with read_from(Path(resume_from_checkpoint)):
            self.soft_model.load_trained_state(load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with written_whole(folder, self.is_world_process_zero()):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with read_from(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with read_from(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not getattr(rows, "shuffles", True):
            return SequentialSampler(rows)
        return super()._get_train_sampler(train_dataset)


def _line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """A log for people."""
    shown = {
        name: value for name, value in logs.items() if name not in ("epoch", "total_flos") and isinstance(value, float | int)
    }
    return f"step {step} of {steps}  " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
