"""Rows for the grafted model: a drawn picture, questions about it and their answers, as ids and labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foveate.demo.drawing import render
from foveate.demo.pictures import Split
from foveate.demo.questions import Question
from foveate.demo.samples import make_sample
from real_weights.models import pixel_values

IGNORED = -100  # a label that is not predicted
QUESTIONS = 4  # short ones of a picture; one with a long answer stands behind them


class Rows(Dataset[dict[str, Tensor]]):
    """Row `index` is a pure function of split, seed and index, so that a run can go on anywhere.

    A row is the picture's placeholders, then for each question `Question: ... Answer: ...` and the end token. Answers and
    their end tokens are predicted.

    Args:
        tokenizer: of the language model.
        config: of the grafted model.
        side: of a picture, in pixels.
        split: "train" or "validation".
        seed: of the pictures.
    """

    def __init__(self, tokenizer: Any, config: Any, side: int, split: Split, seed: int) -> None:
        self.tokenizer, self.side, self.split, self.seed = tokenizer, side, split, seed
        self.holders = [int(config.image_token_id)] * int(config.image_seq_length)
        self.end = int(tokenizer.eos_token_id)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = make_sample(self.split, self.seed, index)
        long = sample.long_questions[index % len(sample.long_questions) :][:1] if sample.long_questions else ()
        ids, labels = [*self.holders], [IGNORED] * len(self.holders)
        for question in (*sample.questions[:QUESTIONS], *long):
            asked, answer = self._written(question)
            ids += [*asked, *answer]
            labels += [*[IGNORED] * len(asked), *answer]
        pixels = pixel_values([render(sample.picture)], self.side)[0]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixel_values": pixels}

    def _written(self, question: Question) -> tuple[list[int], list[int]]:
        asked = self.tokenizer(f"\nQuestion: {question.text}\nAnswer:", add_special_tokens=False)["input_ids"]
        answer = self.tokenizer(f" {question.answer}", add_special_tokens=False)["input_ids"]
        return asked, [*answer, self.end]

    def batches(self, size: int, first: int, last: int, workers: int) -> Iterator[dict[str, Tensor]]:
        """Batches `first` to `last` - 1 of `size` rows, padded on the right."""
        order = range(first * size, last * size)
        loader: Any = DataLoader(self, size, sampler=order, num_workers=workers, collate_fn=self._together, drop_last=True)
        yield from loader

    def _together(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        def padded(name: str, value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        ids = padded("input_ids", self.end)
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            "labels": padded("labels", IGNORED),
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        }
