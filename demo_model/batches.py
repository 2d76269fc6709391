"""Which samples each training step sees. A step's batch depends on the settings and the step only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from foveate.demo.long_answers import LONG_WEIGHTS
from foveate.demo.pictures import MAX_OBJECTS
from foveate.demo.questions import Question
from foveate.demo.samples import Kind, Sample, make_sample
from foveate.demo.scenes import make_dense_scene, picture_random

POOL_BATCHES = 4  # pictures of a pool are sorted by length, so that little of a batch is padding
DENSE_SHARE = {False: 0.6, True: 0.3}  # by whether the world is detailed: its pages are crowded too
# Every so many steps, once they have begun, a batch of several pictures per row; it holds fewer rows.
SEVERAL_EVERY: dict[Kind, tuple[int, int, int]] = {"pair": (10, 4, 2), "clip": (20, 9, 3)}  # period, phase, rows are 1/n

# Reading and adding up are learnt last, long after the rest: once it knows that, the model sees more of them.
FOCUS: dict[Literal["sign", "chart"], tuple[int, int, int]] = {"sign": (5, 2, 2), "chart": (10, 6, 1)}  # rows are times n

Entry = tuple[Sample, tuple[Question, ...]]


@dataclass
class JointBatches:
    """The batches of the joint phase: samples, each with the questions of long answers that go with it."""

    seed: int
    batch_size: int
    question_limit: int
    long_share: float
    first_objects: int
    curriculum_steps: int
    several_from: int
    focus_from: int
    detailed: bool = False
    _pool: tuple[int, list[list[Entry]]] = field(default=(-1, []), repr=False)

    def at(self, step: int) -> list[Entry]:
        """Return the batch of a step."""
        if step >= self.several_from:
            for kind, (period, phase, part) in SEVERAL_EVERY.items():
                if step % period == phase:
                    rows = max(1, self.batch_size // part)
                    first = step * self.batch_size
                    return [
                        (make_sample("train", self.seed, first + i, kind=kind, detailed=self.detailed), ()) for i in range(rows)
                    ]
        if step >= self.focus_from:
            for only, (period, phase, times) in FOCUS.items():
                if step % period == phase:
                    return self._focused(only, step * self.batch_size * times, self.batch_size * times)
        pool, position = divmod(step, POOL_BATCHES)
        if self._pool[0] != pool:
            self._pool = pool, self._make_pool(pool)
        return self._pool[1][position]

    def _focused(self, only: Literal["sign", "chart"], first: int, rows: int) -> list[Entry]:
        """Signs with their captions, or charts with their sums."""
        samples = [
            make_sample("train", self.seed, first + i, question_limit=self.question_limit, only=only, detailed=self.detailed)
            for i in range(rows)
        ]
        return [(sample, sample.long_questions[-1:]) for sample in samples]

    def _make_pool(self, pool: int) -> list[list[Entry]]:
        progress = min(1.0, pool * POOL_BATCHES / self.curriculum_steps)
        objects = self.first_objects + int((MAX_OBJECTS - self.first_objects) * progress)
        size = self.batch_size * POOL_BATCHES
        entries = [self._entry(index, objects) for index in range(pool * size, (pool + 1) * size)]
        entries.sort(key=_text_length)
        batches = [entries[i : i + self.batch_size] for i in range(0, size, self.batch_size)]
        picture_random("train", self.seed, pool, "pool").shuffle(batches)
        return batches

    def _entry(self, index: int, max_objects: int) -> Entry:
        sample = make_sample(
            "train",
            self.seed,
            index,
            max_objects=max_objects,
            question_limit=self.question_limit,
            detailed=self.detailed,
        )
        rng = picture_random("train", self.seed, index, "long")
        if not sample.long_questions or rng.random() >= self.long_share:
            return sample, ()
        weights = [LONG_WEIGHTS[question.task] for question in sample.long_questions]
        return sample, tuple(rng.choices(sample.long_questions, weights))


def vision_batch(seed: int, step: int, size: int, detailed: bool = False) -> list[Sample]:
    """Return the pictures of a step of the vision phase, many of them crowded scenes."""
    samples = []
    for index in range(step * size, (step + 1) * size):
        is_dense = picture_random("train", seed, index, "vision").random() < DENSE_SHARE[detailed]
        samples.append(
            Sample((make_dense_scene("train", seed, index, detailed),), ())
            if is_dense
            else make_sample("train", seed, index, question_limit=0, detailed=detailed)
        )
    return samples


def _text_length(entry: Entry) -> int:
    sample, extra = entry
    questions: Sequence[Question] = (*sample.questions, *extra)
    return sum(len(question.text) + len(question.answer) for question in questions)
