"""Generated conversations without end: what learned methods train on when no data is given."""

from __future__ import annotations

from typing import Any

from foveate.demo.evaluation import conversation
from foveate.demo.long_answers import LONG_WEIGHTS
from foveate.demo.pictures import Split
from foveate.demo.questions import Question
from foveate.demo.samples import Kind, Sample, make_sample
from foveate.demo.scenes import picture_random

LONG_SHARE = 0.5  # of the rows that ask for a long answer
# Of 20 blocks of rows these have several pictures in a row; blocks are batches, so that little of a batch is padding.
BLOCKS: dict[int, Kind] = {4: "pair", 9: "clip", 14: "pair"}
EVERY_BLOCKS = 20


class DemoConversations:
    """One question with its answer in a row, in the proportions of the demo model's own training.

    Args:
        rows: how many.
        split: of the pictures.
        seed: the same seed gives the same rows.
        block: rows in a batch.
        only: a task, to ask nothing else; None for all.
    """

    shuffles = False  # rows are drawn at random anyway

    def __init__(self, rows: int, split: Split = "train", seed: int = 2, block: int = 16, only: str | None = None) -> None:
        self.rows, self.split, self.seed, self.block, self.only = rows, split, seed, block, only

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The chat messages of a row, the answer included."""
        if not 0 <= index < self.rows:
            raise IndexError(index)
        sample, question = self.ask(index)
        answer = {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
        return [*conversation(sample, question), answer]

    def ask(self, index: int) -> tuple[Sample, Question]:
        """The pictures and the question of a row."""
        kind = "single" if self.only else BLOCKS.get(index // self.block % EVERY_BLOCKS, "single")
        rng = picture_random(self.split, self.seed, index, "conversation")
        # A picture may have no question of a task.
        for draw in range(1000):
            sample = make_sample(self.split, self.seed, index * 1000 + draw, kind=kind)
            long = sample.long_questions
            if self.only:
                found = [question for question in (*sample.questions, *long) if question.task == self.only]
            elif long and rng.random() < LONG_SHARE:
                found = rng.choices(long, [LONG_WEIGHTS[question.task] for question in long])
            else:
                found = list(sample.questions)
            if found:
                return sample, rng.choice(found)
        raise ValueError(f"no picture of 1000 has a question of the task {self.only}")
