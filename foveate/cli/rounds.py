"""Conversations as the evaluation reads them: the tokens of every answer, and of what is said between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from foveate.cli import loading
from foveate.demo.evaluation import conversation, held_out_samples
from foveate.errors import InputError
from foveate.evaluate.generation import Sample
from foveate.evaluate.reading import Rounds

Messages = list[dict[str, Any]]


def check_rounds(messages: Messages, where: str) -> None:
    """Refuse what cannot be read round by round.

    Raises:
        InputError: unless questions and answers take turns, end with an answer, and all pictures are in the first question.
    """
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in spoken]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"{where}: the user and the assistant must take turns, and the assistant has the last word")
    if any(part["type"] != "text" for message in spoken[1:] for part in message["content"]):
        raise InputError(f"{where}: a picture after the first question: later rounds are read as text, put it in front")
    if not all(answer.strip() for answer in answers_of(messages)):
        raise InputError(f"{where}: an answer without text")


def answers_of(messages: Messages) -> tuple[str, ...]:
    """What the assistant says in each round."""
    return tuple(
        " ".join(part["text"] for part in message["content"]) for message in messages if message["role"] == "assistant"
    )


def asked(messages: Messages, answer: str) -> Messages:
    """Messages that end with a question, and its answer."""
    return [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def read_messages(model: Any, processor: Any, messages: Messages) -> Rounds:
    """The inputs of the first prompt as the processor makes them, and the ids of what follows as the template writes it.

    Args:
        model, processor: as `load_model` returns them.
        messages: that `check_rounds` accepts, with opened pictures.

    Raises:
        InputError: if the tokens of questions and answers cannot be told apart.
    """
    tokenizer = processor.tokenizer

    def ids_of(part: Sequence[dict[str, Any]], is_prompt: bool) -> list[int]:
        text = processor.apply_chat_template(list(part), add_generation_prompt=is_prompt, tokenize=False)
        # Some templates write a space or a line end after an answer; the model would end there.
        return list(tokenizer(text if is_prompt else text.rstrip(), add_special_tokens=False)["input_ids"])

    known = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    if not ends:
        raise InputError("neither the tokenizer nor the model names an end token, so no answer can be read to its end")
    # Tokens of the texts with their placeholders: pictures fill the same columns in all of them.
    whole, starts, answers = ids_of(messages, False), [], []
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for place in places:
        before, behind = ids_of(messages[:place], True), ids_of(messages[: place + 1], False)
        if not (len(before) < len(behind) and whole[: len(before)] == before and whole[: len(behind)] == behind):
            what = "a prompt with its answer" if place == places[-1] else "a round with the next one"
            raise InputError(f"this model's chat template does not continue {what}, so the answers cannot be read")
        answer = behind[len(before) :]
        end = next((at for at, token in enumerate(answer) if token in ends), None)
        starts.append(len(before))
        answers.append([*answer, tokenizer.eos_token_id or min(ends)] if end is None else answer[: end + 1])
    fed = [start + len(answer) - 1 for start, answer in zip(starts, answers, strict=True)]
    turns = [torch.tensor(whole[said:start]) for said, start in zip(fed, starts[1:], strict=False)]
    inputs = loading.chat_inputs(model, processor, messages[: places[0]])
    return Rounds(inputs, tuple(map(torch.tensor, answers)), tuple(turns))


def demo_samples(model: Any, processor: Any, task: str, count: int, seed: int = 0) -> list[Sample]:
    """Held-out questions of one of the demo's long tasks; the earlier turns of a question are rounds of their own."""

    def rounds(sample: Any) -> Rounds:
        (question,) = sample.questions
        return read_messages(model, processor, asked(conversation(sample, question), question.answer))

    samples = []
    for number, sample in enumerate(held_out_samples(count, seed, (task,)), start=1):
        (question,) = sample.questions
        answers = (*(answer for _, answer in question.earlier), question.answer)
        samples.append(Sample(f"{task} {number}", answers, partial(rounds, sample)))
    return samples
