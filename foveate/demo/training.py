"""Trains the demo model from scratch on a CPU: the vision encoder alone on patch labels, then everything on questions.

The schedule follows the clock, so a run takes as long as it is given. A stopped run resumes from its last checkpoint;
batches depend on the seed and the step only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.demo.model import DemoModelConfig, build_model
from foveate.demo.objective import (
    AuxiliaryHeads,
    answer_loss,
    correct_answers,
    use_fast_attention,
    vision_features,
)
from foveate.demo.optimization import MasterWeights, learning_rate_scale
from foveate.demo.packing import Packer, pixel_batch
from foveate.demo.processor import build_processor
from foveate.demo.questions import LATE_TASK_WEIGHTS, TASK_WEIGHTS
from foveate.demo.samples import QUESTIONS_PER_PICTURE, Sample, make_dense_sample, make_sample
from foveate.demo.scenes import MAX_OBJECTS, picture_random
from foveate.demo.training_log import TrainingLog
from foveate.errors import FoveateError

POOL_BATCHES = 4  # pictures of a pool are sorted by length, so that little of a batch is padding
DENSE_SHARE = 0.6
VISION, JOINT, DONE = "vision", "joint", "done"


@dataclass(frozen=True)
class DemoTrainingConfig:
    """Everything that decides a run. `smoke` replaces sizes and minutes by the smallest that exercise every step."""

    out: Path
    minutes: float = 85.0
    vision_minutes: float = 8.0
    seed: int = 1
    threads: int = 1
    batch_size: int = 16
    vision_batch_size: int = 32
    question_limit: int = QUESTIONS_PER_PICTURE
    learning_rate: float = 2e-3
    vision_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    decay: float = 0.45
    curriculum: float = 0.18
    late: float = 0.78  # from this fraction of the joint phase on, most questions ask for positions
    first_objects: int = 3
    question_weight: float = 3.0
    caption_share: float = 0.4
    auxiliary_weight: float = 0.3
    checkpoint_minutes: float = 5.0
    validation_pictures: int = 128
    vocabulary_samples: int = 3000
    precision: str = "float32"  # "bfloat16" is 3 times faster, but only on a CPU with AVX512-BF16 or AMX
    model: DemoModelConfig = field(default_factory=DemoModelConfig)
    smoke: bool = False

    def resolved(self) -> DemoTrainingConfig:
        """Return the configuration that runs."""
        if not self.smoke:
            return self
        return replace(
            self,
            minutes=0.1,
            vision_minutes=0.03,
            batch_size=4,
            vision_batch_size=4,
            checkpoint_minutes=0.05,
            validation_pictures=8,
            vocabulary_samples=200,
            model=DemoModelConfig(64, 1, 1, 64, 64, 2, 1, 64),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings without the output folder."""
        settings = asdict(self)
        del settings["out"]
        return settings


def train_demo(config: DemoTrainingConfig, clock: Callable[[], float] = time.monotonic) -> Path:
    """Train, or resume, and return the folder that `from_pretrained` reads.

    Args:
        config: the run; an existing `config.out` with a checkpoint is continued.
        clock: seconds from any start; tests pass their own.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _Run(config.resolved(), clock).finish()
    finally:
        torch.set_num_threads(threads_before)


class _Run:
    def __init__(self, config: DemoTrainingConfig, clock: Callable[[], float]) -> None:
        self.config = config
        config.out.mkdir(parents=True, exist_ok=True)
        self.processor = _saved_or_new_processor(config)
        self.packer = Packer(self.processor.tokenizer, question_weight=config.question_weight)
        self.model = build_model(self.processor.tokenizer, config.model, seed=config.seed)
        use_fast_attention(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.heads = AuxiliaryHeads(config.model.vision_width)
        self.everything = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.phase, self.step, self.masters = VISION, 0, MasterWeights(nn.Module(), torch.float32)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.pool: tuple[int, list[list[tuple[Sample, bool]]]] = (-1, [])
        optimizer_states, elapsed = self._load()
        self._start_phase(optimizer_states)
        self._clock, self._started = clock, clock() - elapsed
        self._next_checkpoint = elapsed + 60 * config.checkpoint_minutes
        self.log = TrainingLog(config.out / "log.jsonl", config.minutes)

    def finish(self) -> Path:
        if self.phase == VISION:
            self._run_phase(0.0, self.config.vision_minutes, self._vision_step)
            self.masters.release()
            self.phase, self.step = JOINT, 0
            self._start_phase(None)
            self._save()
        if self.phase == JOINT:
            self._run_phase(self.config.vision_minutes, self.config.minutes, self._joint_step)
            self.phase = DONE
            self._save()
        return self._export()

    def _start_phase(self, optimizer_states: Sequence[Any] | None) -> None:
        trained: nn.Module = self.everything
        rate = self.config.learning_rate
        if self.phase == VISION:
            trained = nn.ModuleDict({"vision": self.model.model.vision_tower, "heads": self.heads})
            rate = self.config.vision_learning_rate
        self.masters = MasterWeights(trained, getattr(torch, self.config.precision))
        self.optimizers = self.masters.optimizers(rate, self.config.weight_decay)
        for optimizer, state in zip(self.optimizers, optimizer_states or (), strict=False):
            optimizer.load_state_dict(state)

    def _elapsed(self) -> float:
        return self._clock() - self._started

    def _run_phase(self, start: float, end: float, train_step: Callable[[float], dict[str, float]]) -> None:
        """Step until minute `end`; `train_step` gets the fraction of the phase that is over."""
        while (elapsed := self._elapsed()) < 60 * end:
            fraction = (elapsed / 60 - start) / (end - start)
            losses = train_step(fraction)
            self.step += 1
            self.log.step(self.phase, self.step, self._elapsed() / 60, losses)
            if self._elapsed() > self._next_checkpoint:
                self._save()
                self._validate()
                self._next_checkpoint = self._elapsed() + 60 * self.config.checkpoint_minutes
        self._validate()

    def _vision_step(self, fraction: float) -> dict[str, float]:
        config = self.config
        samples = _vision_samples(config, self.step * config.vision_batch_size, config.vision_batch_size)
        loss = self.heads.loss(vision_features(self.model, pixel_batch(samples)), samples)
        self._update(loss, config.vision_learning_rate * learning_rate_scale(fraction, config.warmup, config.decay))
        return {"pictures": len(samples), "auxiliary": float(loss.detach())}

    def _joint_step(self, fraction: float) -> dict[str, float]:
        config = self.config
        chosen = self._joint_batch(fraction)
        samples = [sample for sample, _ in chosen]
        batch = self.packer.pack(samples, [has_caption for _, has_caption in chosen])
        features = vision_features(self.model, batch.pixel_values)
        auxiliary = self.heads.loss(features, samples)
        answers = answer_loss(self.model, batch, features)
        rate = config.learning_rate * learning_rate_scale(fraction, config.warmup, config.decay)
        self._update(answers + config.auxiliary_weight * auxiliary, rate)
        losses = {"answers": float(answers.detach()), "auxiliary": float(auxiliary.detach())}
        return {"pictures": len(samples), **losses}

    def _update(self, loss: torch.Tensor, rate: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self.masters.step(self.optimizers, rate)

    def _joint_batch(self, fraction: float) -> list[tuple[Sample, bool]]:
        pool_index, position = divmod(self.step, POOL_BATCHES)
        if self.pool[0] != pool_index:
            progress = min(1.0, fraction / self.config.curriculum)
            objects = self.config.first_objects + int((MAX_OBJECTS - self.config.first_objects) * progress)
            weights = LATE_TASK_WEIGHTS if fraction > self.config.late else TASK_WEIGHTS
            self.pool = pool_index, _make_pool(self.config, pool_index, objects, weights)
        return self.pool[1][position]

    def _validate(self) -> None:
        scores: dict[str, Any] = {}
        samples = [make_sample("validation", self.config.seed, i) for i in range(self.config.validation_pictures)]
        batches = [samples[i : i + self.config.batch_size] for i in range(0, len(samples), self.config.batch_size)]
        if self.phase == VISION:
            with torch.no_grad():
                features = [vision_features(self.model, pixel_batch(batch)) for batch in batches]
            hits = [self.heads.form_accuracy(f, batch) for f, batch in zip(features, batches, strict=True)]
            scores["patch_form"] = sum(hits) / len(hits)
        else:
            scores = _accuracy_per_task(self.model, self.packer, batches)
        self.log.validation(self.phase, self.step, self._elapsed() / 60, scores)

    def _save(self) -> None:
        masters = self.masters.values()
        weights = {name: masters.get(id(p), p).detach() for name, p in self.everything.named_parameters()}
        checkpoint = {
            "phase": self.phase,
            "step": self.step,
            "elapsed": self._elapsed(),
            "weights": weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "model": asdict(self.config.model),
        }
        part = self.config.out / "checkpoint.pt.part"
        torch.save(checkpoint, part)
        part.replace(self.config.out / "checkpoint.pt")

    def _load(self) -> tuple[Sequence[Any] | None, float]:
        path = self.config.out / "checkpoint.pt"
        if not path.exists():
            return None, 0.0
        checkpoint = torch.load(path, weights_only=True)
        if checkpoint["model"] != asdict(self.config.model):
            raise FoveateError(f"{path} holds another model size; choose another --out or delete the folder")
        with torch.no_grad():
            for name, parameter in self.everything.named_parameters():
                parameter.copy_(checkpoint["weights"][name])
        self.phase, self.step = checkpoint["phase"], checkpoint["step"]
        return checkpoint["optimizers"], checkpoint["elapsed"]

    def _export(self) -> Path:
        folder = self.config.out / "model"
        # A fresh model: the trained one still points to the training attention.
        model = build_model(self.processor.tokenizer, self.config.model).to(torch.bfloat16)
        model.load_state_dict(self.model.state_dict())
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (folder / "training_config.json").write_text(json.dumps(self.config.to_json(), indent=2) + "\n")
        (folder / "training_log.jsonl").write_bytes((self.config.out / "log.jsonl").read_bytes())
        return folder


def _saved_or_new_processor(config: DemoTrainingConfig) -> Any:
    folder = config.out / "processor"
    if not folder.exists():
        build_processor(config.seed, config.vocabulary_samples).save_pretrained(folder)
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def _vision_samples(config: DemoTrainingConfig, first: int, count: int) -> list[Sample]:
    samples = []
    for index in range(first, first + count):
        is_dense = picture_random("train", config.seed, index, "vision").random() < DENSE_SHARE
        if is_dense:
            samples.append(make_dense_sample("train", config.seed, index))
        else:
            samples.append(make_sample("train", config.seed, index, question_limit=0))
    return samples


def _make_pool(
    config: DemoTrainingConfig, pool_index: int, max_objects: int, weights: Mapping[str, float]
) -> list[list[tuple[Sample, bool]]]:
    size = config.batch_size * POOL_BATCHES
    entries = []
    for index in range(pool_index * size, (pool_index + 1) * size):
        sample = make_sample(
            "train",
            config.seed,
            index,
            max_objects=max_objects,
            question_limit=config.question_limit,
            weights=weights,
        )
        has_caption = picture_random("train", config.seed, index, "caption").random() < config.caption_share
        entries.append((sample, has_caption))
    entries.sort(key=lambda entry: _text_length(*entry))
    batches = [entries[i : i + config.batch_size] for i in range(0, size, config.batch_size)]
    picture_random("train", config.seed, pool_index, "pool").shuffle(batches)
    return batches


def _text_length(sample: Sample, has_caption: bool) -> int:
    questions = (*sample.questions, sample.caption) if has_caption else sample.questions
    return sum(len(question.text) + len(question.answer) for question in questions)


def _accuracy_per_task(model: Any, packer: Packer, batches: Sequence[Sequence[Sample]]) -> dict[str, float]:
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for samples in batches:
        batch = packer.pack(samples, [True] * len(samples))
        for questions, correct in zip(batch.questions, correct_answers(model, batch), strict=True):
            for question, is_correct in zip(questions, correct, strict=True):
                asked[question.task] += 1
                right[question.task] += is_correct
    return {task: right[task] / asked[task] for task in sorted(asked)}


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description="Train the demo model from scratch.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run; continued if it exists")
    parser.add_argument("--minutes", type=float, default=85.0, help="wall-clock minutes in total")
    parser.add_argument("--vision-minutes", type=float, default=8.0, help="of these, for the vision encoder alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--smoke", action="store_true", help="the whole recipe in seconds, for tests")
    print(train_demo(DemoTrainingConfig(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
