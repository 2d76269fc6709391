"""Many questions about one picture in one sequence, exactly equal to asking them one by one.

A row is `[start, user, 144 visual tokens]` followed by segments `question, assistant, answer, end`. A segment sees the
prefix and itself only, and its positions restart after the prefix, so one pass over the picture serves all questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foveate.demo.processor import ASSISTANT_TOKEN, END_TOKEN, IMAGE_TOKEN, PAD_TOKEN, START_TOKEN, USER_TOKEN
from foveate.demo.questions import CAPTION, Question
from foveate.demo.samples import Sample
from foveate.demo.scenes import VISUAL_TOKENS

IGNORED = -100  # the label that cross entropy leaves out
PREFIX_TEXT_TOKENS = 2
PREFIX_TOKENS = PREFIX_TEXT_TOKENS + VISUAL_TOKENS
PADDING_SEGMENT = -1
LENGTH_MULTIPLE = 16
MEAN = (0.48145466, 0.4578275, 0.40821073)  # the CLIP image processor's normalisation
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class PackedBatch:
    """Tensors of one batch; `B` pictures, `N` columns.

    `segments` is 0 on the prefix, 1, 2, ... on the questions in the order of `questions`, and -1 on padding.
    """

    input_ids: torch.Tensor  # [B, N]
    labels: torch.Tensor  # [B, N], IGNORED except on answers
    weights: torch.Tensor  # [B, N]
    segments: torch.Tensor  # [B, N]
    position_ids: torch.Tensor  # [B, N]
    is_visible: torch.Tensor  # [B, 1, N, N], rows look at columns
    pixel_values: torch.Tensor  # [B, 3, 96, 96]
    questions: list[list[Question]]


def pixel_batch(samples: Sequence[Sample]) -> torch.Tensor:
    """Return normalised pixels [B, 3, 96, 96], as the image processor makes them."""
    pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


class Packer:
    """Turns samples into packed batches; remembers the token ids of texts it has seen."""

    def __init__(self, tokenizer: Any, *, question_weight: float = 1.0) -> None:
        self.tokenizer = tokenizer
        self.question_weight = question_weight
        ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in (IMAGE_TOKEN, ASSISTANT_TOKEN)}
        self.assistant_id = ids[ASSISTANT_TOKEN]
        self.end_id = int(tokenizer.convert_tokens_to_ids(END_TOKEN))
        self.pad_id = int(tokenizer.convert_tokens_to_ids(PAD_TOKEN))
        start_and_user = [int(tokenizer.convert_tokens_to_ids(token)) for token in (START_TOKEN, USER_TOKEN)]
        self.prefix = torch.tensor(start_and_user + [ids[IMAGE_TOKEN]] * VISUAL_TOKENS)
        self._known: dict[str, list[int]] = {}

    def pack(self, samples: Sequence[Sample], with_caption: Sequence[bool]) -> PackedBatch:
        """Return one batch; the caption of sample `i` comes last in its row if `with_caption[i]`."""
        questions = [
            [*sample.questions, sample.caption] if has_caption else list(sample.questions)
            for sample, has_caption in zip(samples, with_caption, strict=True)
        ]
        rows = [self._row(row) for row in questions]
        longest = PREFIX_TOKENS + max(len(row) for row in rows)
        width = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        table = torch.zeros(len(rows), width, 5)
        table[:, :, 0] = self.pad_id
        table[:, :, 1] = IGNORED
        table[:, :, 2] = PADDING_SEGMENT
        table[:, :PREFIX_TOKENS, 0] = self.prefix.float()
        table[:, :PREFIX_TOKENS, 2] = 0
        table[:, :PREFIX_TOKENS, 3] = torch.arange(PREFIX_TOKENS)
        for i, row in enumerate(rows):
            table[i, PREFIX_TOKENS : PREFIX_TOKENS + len(row)] = torch.tensor(row).view(-1, 5)
        input_ids, labels, segments, positions = (table[:, :, column].long() for column in range(4))
        return PackedBatch(
            input_ids=input_ids,
            labels=labels,
            weights=table[:, :, 4],
            segments=segments,
            position_ids=positions,
            is_visible=_visibility(segments),
            pixel_values=pixel_batch(samples),
            questions=questions,
        )

    def _row(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Return (id, label, segment, position, weight) per token after the prefix."""
        row: list[tuple[float, ...]] = []
        for segment, question in enumerate(questions, start=1):
            asked = [*self._encode(question.text), self.assistant_id]
            answered = [*self._encode(question.answer), self.end_id]
            weight = 1.0 if question.task == CAPTION else self.question_weight
            labels = [IGNORED] * len(asked) + answered
            for offset, (token, label) in enumerate(zip(asked + answered, labels, strict=True)):
                row.append((token, label, segment, PREFIX_TOKENS + offset, weight))
        return row

    def _encode(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is None:
            ids = self._known[text] = list(self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
            if len(self._known) > 100_000:
                self._known.clear()
        return ids


def _visibility(segments: torch.Tensor) -> torch.Tensor:
    order = torch.arange(segments.shape[1])
    is_past = order[None, :] <= order[:, None]
    is_own_or_prefix = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    return (is_past & is_own_or_prefix)[:, None]
