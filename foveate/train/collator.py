"""Batches of conversations through the model's own processor and chat template, with labels on what the assistant says.

Where the answers stand is found in the text that the template renders, and carried over to the tokens that the processor
makes of it: a processor puts many tokens where the text has one picture, so the two differ in front of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.train.data import Messages

IGNORED = -100  # the label that cross entropy leaves out
Span = tuple[int, int]


class ChatCollator:
    """Turns conversations into model inputs with labels.

    Args:
        processor: of the model, with a chat template.
        placeholders: ids that stand for visual tokens.
        max_length: longer rows lose the end of their last answers.

    Raises:
        InputError: if the processor has no chat template or no fast tokenizer.
    """

    def __init__(self, processor: Any, placeholders: Sequence[int], max_length: int = 2048) -> None:
        self.processor, self.placeholders, self.max_length = processor, list(placeholders), max_length
        self.tokenizer = processor.tokenizer
        self.template: str | None = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if not self.template:
            raise InputError("the model's processor has no chat template: take a chat or instruct version of the model")
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError("the model's tokenizer is a slow one, which does not say where a text's tokens stand")

    def __call__(self, rows: list[Messages]) -> dict[str, Tensor]:
        """Inputs of one batch; `labels` [B, S] hold the ids of answers and their ends, -100 elsewhere."""
        made = self._process(rows)
        ids, mask = made["input_ids"], made["attention_mask"].bool()
        labels = torch.full_like(ids, IGNORED)
        for number, messages in enumerate(rows):
            columns = torch.nonzero(mask[number]).flatten()
            for start, stop in self._answers(messages, ids[number][columns].tolist()):
                labels[number, columns[start:stop]] = ids[number, columns[start:stop]]
        return self._cut({**made, "labels": labels})

    def _process(self, rows: list[Messages]) -> dict[str, Any]:
        made = self.processor.apply_chat_template(
            rows, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
        )
        return dict(made)

    def _answers(self, messages: Messages, ids: list[int]) -> list[Span]:
        """[start, stop) of each answer among the ids of its row."""
        text = self._render(messages)
        plain = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        known, offsets = list(plain["input_ids"]), plain["offset_mapping"]
        same = _common_end(known, ids)
        found = []
        for turn, (first, last) in enumerate(self._spans(messages, text)):
            inside = [n for n, (start, stop) in enumerate(offsets) if stop > first and start < last and stop > start]
            start = inside[0] - len(known) + len(ids)
            if inside[0] < len(known) - same:  # a later turn has a picture
                start = self._start_behind_pictures(messages, turn)
            stop = start + len(inside)
            if ids[start:stop] != [known[n] for n in inside]:
                raise InputError(
                    "the processor's tokens of an answer are not those of its text, so labels cannot be placed: "
                    f"'{text[first:last][:60]}'"
                )
            found.append((start, stop))
        return found

    def _spans(self, messages: Messages, text: str) -> list[Span]:
        """[first, last) character of each answer with the token that ends it."""
        if "{% generation" in str(self.template) or "{%- generation" in str(self.template):
            return self._marked_spans(messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:turn], add_generation_prompt=True)
            behind = self._render(messages[: turn + 1]).rstrip()
            if not (text.startswith(before) and text.startswith(behind) and len(before) < len(behind)):
                raise InputError(
                    "this chat template changes earlier turns when later ones follow, so answers cannot be found in it: give "
                    "the processor a template with {% generation %} around them"
                )
            spans.append((len(before), len(behind)))
        return spans

    def _marked_spans(self, messages: Messages) -> list[Span]:
        from transformers.utils.chat_template_utils import render_jinja_template

        _, spans = render_jinja_template(
            conversations=[messages],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(int(first), int(last)) for first, last in spans[0]]

    def _render(self, messages: Messages, **options: Any) -> str:
        return str(self.processor.apply_chat_template(messages, tokenize=False, **options))

    def _start_behind_pictures(self, messages: Messages, answer: int) -> int:
        """How many tokens the processor makes of everything in front of an answer."""
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        made = self.processor.apply_chat_template(
            [messages[: turns[answer]]], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return int(made["input_ids"].shape[1])

    def _cut(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first `max_length` columns of each row; a picture must not be cut."""
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        if ids.shape[1] > self.max_length:
            keep = mask & (mask.cumsum(1) <= self.max_length)
            lost = mask & ~keep
            if bool((lost & torch.isin(ids, torch.tensor(self.placeholders))).any()):
                raise InputError(
                    f"a picture reaches beyond column {self.max_length}: raise --max-length, or leave that row out"
                )
            index = torch.argsort(keep.int(), dim=1, descending=True, stable=True)[:, : int(keep.sum(1).max())]
            filled = {"labels": IGNORED, "input_ids": int(self.tokenizer.pad_token_id or 0)}
            for name, value in batch.items():
                if isinstance(value, Tensor) and value.shape == ids.shape:
                    batch[name] = value.masked_fill(~keep, filled.get(name, 0)).gather(1, index)
        if bool((batch["labels"] == IGNORED).all()):
            raise InputError(f"no answer of a batch begins within {self.max_length} columns: raise --max-length")
        return batch


def _common_end(first: list[int], second: list[int]) -> int:
    """How many ids two sequences have in common at their ends."""
    count = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        count += 1
    return count
