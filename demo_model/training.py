"""Trains the demo model from scratch on a CPU: the vision encoder alone on patch labels, then everything on questions.

The schedule counts steps, and batches depend on the seed and the step only, so a run can be repeated; a stopped run resumes
from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from demo_model.batches import JointBatches, vision_batch
from demo_model.checkpoint import CHECKPOINT, checkpoint_readable, read_checkpoint, write_checkpoint
from demo_model.config import DemoTrainingConfig, check_settings
from demo_model.growth import grow
from demo_model.model import build_model
from demo_model.objective import (
    AuxiliaryHeads,
    answer_loss,
    patch_word_ids,
    use_fast_attention,
)
from demo_model.optimization import MasterWeights, learning_rate_scale
from demo_model.processor import build_processor
from demo_model.training_log import TrainingLog
from foveate.demo.forced import correct_answers, vision_features
from foveate.demo.packing import Packer, pixel_batch
from foveate.demo.samples import KINDS, Kind, Sample, make_sample
from foveate.errors import FoveateError, InputError, first_line
from foveate.files.folders import appearing, locked
from foveate.files.paths import refused
from foveate.files.writing import make_folder

VISION, JOINT, DONE = "vision", "joint", "done"


def train_demo(config: DemoTrainingConfig, on_step: Callable[[str, int], None] | None = None) -> Path:
    """Train, or resume, and return the folder that `from_pretrained` reads.

    Args:
        config: the run; an existing `config.out` with a checkpoint is continued. As long as the learning rate does not yet
            fall, it may be continued with more or fewer `steps`, which is the same as having begun with them.
        on_step: called behind every step with the phase and the step.

    Raises:
        FoveateError: if the folder holds a run of another size, or one whose learning rate falls already for other steps.
    """
    check_settings(config)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        make_folder(config.out.absolute().parent)  # of the lock
        with locked(config.out):
            return _Run(config.resolved(), on_step or (lambda phase, step: None)).finish()
    finally:
        torch.set_num_threads(threads_before)


class _Run:
    def __init__(self, config: DemoTrainingConfig, on_step: Callable[[str, int], None]) -> None:
        self.config, self.on_step = config, on_step
        make_folder(config.out)
        self.processor = _saved_or_new_processor(config)
        self.packer = Packer(self.processor, question_weight=config.question_weight)
        self.model = build_model(self.processor.tokenizer, config.model, seed=config.seed)
        if config.start is not None:
            grow(self.model, self.processor.tokenizer, config.start)
        if config.precision == "bfloat16":
            use_fast_attention(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            words = patch_word_ids(self.processor.tokenizer, config.detailed)
            self.heads = AuxiliaryHeads(config.model.vision_width, words, config.model.grid, config.detailed)
        self.everything = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.phase, self.step, self.masters = VISION, 0, MasterWeights(nn.Module(), torch.float32)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.batches = JointBatches(
            seed=config.seed,
            batch_size=config.batch_size,
            question_limit=config.question_limit,
            long_share=config.long_share,
            first_objects=config.first_objects,
            curriculum_steps=config.curriculum_steps,
            several_from=config.several_from,
            focus_from=config.focus_from,
            detailed=config.detailed,
        )
        optimizer_states, elapsed = self._load()
        self._start_phase(optimizer_states)
        self._started = time.monotonic() - elapsed
        self._next_checkpoint = elapsed + 60 * config.checkpoint_minutes
        self.log = TrainingLog(config.out / "log.jsonl", {VISION: config.vision_steps, JOINT: config.steps})

    def finish(self) -> Path:
        config = self.config
        if self.phase == VISION:
            self._run_phase(config.vision_steps, self._vision_step)
            self.masters.release()
            self.phase, self.step = JOINT, 0
            self._start_phase(None)
            self._save()
        if self.phase == JOINT:
            self._run_phase(config.steps, self._joint_step)
            self.phase = DONE
            self._save()
        return self._export()

    def _start_phase(self, optimizer_states: Sequence[Any] | None) -> None:
        trained: nn.Module = self.everything
        rate = self.config.learning_rate
        if self.phase == VISION:
            inner = self.model.model
            parts = {"vision": inner.vision_tower, "projector": inner.multi_modal_projector, "heads": self.heads}
            if self.config.start is None:  # a decoder that knows its words already would lose them
                parts["words"] = inner.language_model.embed_tokens
            trained = nn.ModuleDict(parts)
            rate = self.config.vision_learning_rate
        self.masters = MasterWeights(trained, getattr(torch, self.config.precision))
        self.optimizers = self.masters.optimizers(rate, self.config.weight_decay)
        if optimizer_states is not None:
            with checkpoint_readable(self.config.out / CHECKPOINT):
                for optimizer, state in zip(self.optimizers, optimizer_states, strict=True):
                    optimizer.load_state_dict(state)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _run_phase(self, steps: int, train_step: Callable[[], dict[str, float]]) -> None:
        while self.step < steps:
            losses = train_step()
            self.step += 1
            self.log.step(self.phase, self.step, self._elapsed() / 60, losses)
            if self._elapsed() > self._next_checkpoint:
                self._save()
                self._validate()
                self._next_checkpoint = self._elapsed() + 60 * self.config.checkpoint_minutes
            self.on_step(self.phase, self.step)
        self._validate()

    def _vision_step(self) -> dict[str, float]:
        config = self.config
        samples = vision_batch(config.seed, self.step, config.vision_batch_size, config.detailed)
        loss = self.heads.loss(self.model, vision_features(self.model, pixel_batch(samples, self.packer.side)), samples)
        scale = learning_rate_scale(self.step, config.vision_steps, config.warmup_steps, config.vision_decay_steps)
        self._update(loss, config.vision_learning_rate * scale)
        return {"pictures": len(samples), "auxiliary": float(loss.detach())}

    def _joint_step(self) -> dict[str, float]:
        config = self.config
        chosen = self.batches.at(self.step)
        samples = [sample for sample, _ in chosen]
        batch = self.packer.pack(samples, [extra for _, extra in chosen])
        features = vision_features(self.model, batch.pixel_values)
        auxiliary = self.heads.loss(self.model, features, samples)
        answers = answer_loss(self.model, batch, features)
        scale = learning_rate_scale(self.step, config.steps, config.warmup_steps, config.decay_steps)
        self._update(answers + config.auxiliary_weight * auxiliary, config.learning_rate * scale)
        losses = {"answers": float(answers.detach()), "auxiliary": float(auxiliary.detach())}
        return {"pictures": len(batch.pixel_values), **losses}

    def _update(self, loss: torch.Tensor, rate: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self.masters.step(self.optimizers, rate)

    def _validate(self) -> None:
        scores: dict[str, Any] = {}
        if self.phase == VISION:
            with torch.no_grad():
                batches = _validation_batches(self.config, "single")
                features = [vision_features(self.model, pixel_batch(batch, self.packer.side)) for batch in batches]
                hits = [self.heads.form_accuracy(f, batch) for f, batch in zip(features, batches, strict=True)]
            scores["patch_form"] = sum(hits) / len(hits)
        else:
            for kind in KINDS:
                scores |= _accuracy_per_task(self.model, self.packer, _validation_batches(self.config, kind))
        self.log.validation(self.phase, self.step, self._elapsed() / 60, scores)

    def _save(self) -> None:
        masters = self.masters.values()
        weights = {name: masters.get(id(p), p).detach() for name, p in self.everything.named_parameters()}
        checkpoint = {
            "phase": self.phase,
            "step": self.step,
            "steps": self.config.steps,
            "elapsed": self._elapsed(),
            "weights": weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "model": asdict(self.config.model),
        }
        write_checkpoint(self.config.out / CHECKPOINT, checkpoint)

    def _load(self) -> tuple[Sequence[Any] | None, float]:
        path = self.config.out / CHECKPOINT
        if not os.path.lexists(path):
            return None, 0.0
        checkpoint = read_checkpoint(path)
        if checkpoint["model"] != asdict(self.config.model):
            raise FoveateError(f"{path} holds another model size; choose another --out or delete the folder")
        falls_from = min(checkpoint["steps"], self.config.steps) - self.config.decay_steps
        if checkpoint["steps"] != self.config.steps and checkpoint["phase"] != VISION and checkpoint["step"] > falls_from:
            raise FoveateError(
                f"{path} is at step {checkpoint['step']} of {checkpoint['steps']}, where the learning rate falls; continue it "
                f"with --steps {checkpoint['steps']}, or choose another --out"
            )
        with torch.no_grad(), checkpoint_readable(path):
            for name, parameter in self.everything.named_parameters():
                if checkpoint["weights"][name].shape != parameter.shape:
                    raise ValueError(f"{name} has another shape")
                parameter.copy_(checkpoint["weights"][name])
        self.phase, self.step = checkpoint["phase"], checkpoint["step"]
        return checkpoint["optimizers"], checkpoint["elapsed"]

    def _export(self) -> Path:
        folder = self.config.out / "model"
        # A fresh model: the trained one still points to the training attention.
        model = build_model(self.processor.tokenizer, self.config.model).to(torch.bfloat16)
        model.load_state_dict(self.model.state_dict())
        settings = self.config.to_json() | {"hours": round(self._elapsed() / 3600, 2)}
        with appearing(folder) as partial, refused("write", folder):
            model.save_pretrained(partial)
            self.processor.save_pretrained(partial)
            (partial / "training_config.json").write_text(json.dumps(settings, indent=2) + "\n")
            (partial / "training_log.jsonl").write_bytes((self.config.out / "log.jsonl").read_bytes())
        return folder


def _saved_or_new_processor(config: DemoTrainingConfig) -> Any:
    folder = config.out / "processor"
    if not folder.exists():
        with appearing(folder) as partial, refused("write", folder):
            build_processor(
                config.seed, config.vocabulary_samples, config.model.picture_pixels, config.detailed
            ).save_pretrained(partial)
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers meet
        raise InputError(f"{folder} cannot be read ({first_line(error)}): choose another --out") from None


def _validation_batches(config: DemoTrainingConfig, kind: Kind) -> list[list[Sample]]:
    count = max(1, config.validation_pictures // {"single": 1, "pair": 2, "clip": 4}[kind])
    samples = [make_sample("validation", config.seed, i, kind=kind, detailed=config.detailed) for i in range(count)]
    return [samples[i : i + config.batch_size] for i in range(0, count, config.batch_size)]


def _accuracy_per_task(model: Any, packer: Packer, batches: Sequence[Sequence[Sample]]) -> dict[str, float]:
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for samples in batches:
        batch = packer.pack(samples, [sample.long_questions for sample in samples])
        for questions, correct in zip(batch.questions, correct_answers(model, batch), strict=True):
            for question, is_correct in zip(questions, correct, strict=True):
                asked[question.task] += 1
                right[question.task] += is_correct
    return {task: right[task] / asked[task] for task in sorted(asked)}
