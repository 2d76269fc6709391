"""Many questions about one picture in one sequence, exactly equal to asking them one by one.

A row is `[start, user, visual tokens of each picture]` followed by segments `question, assistant, answer, end`, or several
such turns. A segment sees the prefix and itself only, and its positions restart after the prefix, so one pass over the
pictures serves all questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from foveate.demo.questions import Question
from foveate.demo.samples import Sample
from foveate.demo.tasks import LONG_ANSWERS

IMAGE_TOKEN = "<image>"
USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"
END_TOKEN = "<|end|>"
PAD_TOKEN = "<pad>"
START_TOKEN = "<s>"
IGNORED = -100  # the label that cross entropy leaves out
PREFIX_TEXT_TOKENS = 2
PADDING_SEGMENT = -1
LENGTH_MULTIPLE = 16
MEAN = (0.48145466, 0.4578275, 0.40821073)  # the CLIP image processor's normalisation
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class PackedBatch:
    """Tensors of one batch; `B` rows of `M` pictures each, `P` columns of prefix among `N` columns.

    `segments` is 0 on the prefix, 1, 2, ... on the questions in the order of `questions`, and -1 on padding.
    """

    prefix: int  # P
    input_ids: torch.Tensor  # [B, N]
    labels: torch.Tensor  # [B, N], IGNORED except on answers
    is_graded: torch.Tensor  # [B, N], the answer of the last turn
    weights: torch.Tensor  # [B, N]
    segments: torch.Tensor  # [B, N]
    position_ids: torch.Tensor  # [B, N]
    is_visible: torch.Tensor  # [B, 1, N, N], rows look at columns
    pixel_values: torch.Tensor  # [B * M, 3, side, side]
    questions: list[list[Question]]


def picture_side(processor: Any) -> int:
    """Return the side in pixels of the pictures that a demo model's processor makes."""
    return int(processor.image_processor.crop_size["height"])


def pixel_batch(samples: Sequence[Sample], side: int) -> torch.Tensor:
    """Return normalised pixels [pictures, 3, side, side], as the image processor makes them."""
    pixels = torch.from_numpy(np.concatenate([sample.pixels(side) for sample in samples])).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


class Packer:
    """Turns samples into packed batches; remembers the token ids of texts it has seen."""

    def __init__(self, processor: Any, *, question_weight: float = 1.0) -> None:
        self.tokenizer = tokenizer = processor.tokenizer
        self.side = picture_side(processor)
        self.visual_tokens = (self.side // processor.patch_size) ** 2
        self.question_weight = question_weight
        names = (START_TOKEN, USER_TOKEN, ASSISTANT_TOKEN, END_TOKEN, PAD_TOKEN, IMAGE_TOKEN)
        ids = [int(tokenizer.convert_tokens_to_ids(name)) for name in names]
        self.start_id, self.user_id, self.assistant_id, self.end_id, self.pad_id, self.image_id = ids
        self._known: dict[str, list[int]] = {}

    def pack(self, samples: Sequence[Sample], extra: Sequence[Sequence[Question]] | None = None) -> PackedBatch:
        """Return one batch.

        Args:
            samples: all with the same number of pictures.
            extra: per sample more questions, appended to its short ones.
        """
        questions = [[*sample.questions, *more] for sample, more in zip(samples, extra or [()] * len(samples), strict=True)]
        visual = [self.image_id] * (self.visual_tokens * len(samples[0].pictures))
        prefix = torch.tensor([self.start_id, self.user_id, *visual], dtype=torch.float32)
        rows = [self._row(row, len(prefix)) for row in questions]
        longest = len(prefix) + max(len(row) for row in rows)
        width = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        table = torch.zeros(len(rows), width, 6)
        table[:, :, 0] = self.pad_id
        table[:, :, 1] = IGNORED
        table[:, :, 2] = PADDING_SEGMENT
        table[:, : len(prefix), 0] = prefix
        table[:, : len(prefix), 2] = 0
        table[:, : len(prefix), 3] = torch.arange(len(prefix))
        for i, row in enumerate(rows):
            table[i, len(prefix) : len(prefix) + len(row)] = torch.tensor(row).view(-1, 6)
        input_ids, labels, segments, positions = (table[:, :, column].long() for column in range(4))
        return PackedBatch(
            prefix=len(prefix),
            input_ids=input_ids,
            labels=labels,
            is_graded=table[:, :, 5] > 0,
            weights=table[:, :, 4],
            segments=segments,
            position_ids=positions,
            is_visible=_visibility(segments),
            pixel_values=pixel_batch(samples, self.side),
            questions=questions,
        )

    def _row(self, questions: Sequence[Question], start: int) -> list[tuple[float, ...]]:
        """Return (id, label, segment, position, weight, is graded) per token after the prefix."""
        row: list[tuple[float, ...]] = []
        for segment, question in enumerate(questions, start=1):
            weight = 1.0 if question.task in LONG_ANSWERS else self.question_weight
            position = start
            for turn, (text, answer) in enumerate((*question.earlier, (question.text, question.answer))):
                asked = [*([self.user_id] if turn else []), *self._encode(text), self.assistant_id]
                answered = [*self._encode(answer), self.end_id]
                is_last = turn == len(question.earlier)
                labels = [IGNORED] * len(asked) + answered
                for token, label in zip(asked + answered, labels, strict=True):
                    row.append((token, label, segment, position, weight, float(is_last and label != IGNORED)))
                    position += 1
        return row

    def _encode(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is None:
            ids = self._known[text] = list(self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
            if len(self._known) > 100_000:
                self._known.clear()
        return ids


def without_every_other_output(batch: PackedBatch) -> PackedBatch:
    """Return the batch with every second answer token (of all turns) hidden from the tokens behind it, in every layer.

    A token always sees itself, as in decoding, where what is dropped is dropped behind its own step.
    """
    is_output = batch.labels != IGNORED
    is_hidden = torch.zeros_like(is_output)
    for number in range(1, int(batch.segments.max()) + 1):
        own = is_output & (batch.segments == number)
        is_hidden |= own & (own.cumsum(1) % 2 == 0)
    others = ~torch.eye(is_output.shape[1], dtype=torch.bool)
    return replace(batch, is_visible=batch.is_visible & ~(is_hidden[:, None, None] & others))


def _visibility(segments: torch.Tensor) -> torch.Tensor:
    order = torch.arange(segments.shape[1])
    is_past = order[None, :] <= order[:, None]
    is_own_or_prefix = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    return (is_past & is_own_or_prefix)[:, None]
