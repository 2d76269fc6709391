"""Perplexity of given answers under a plan, by teacher forcing through the KV cache.

Dynamic-LLaVA's protocol for generation (arXiv 2412.00876, Tab. 3): the loss of every token of an answer and of the end token,
given the prompt and the answer before it, with what the plan drops dropped and what its gate rejects not stored. Several rounds
are read one after another, each after the given answers of those before it, on one cache.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from foveate.api import Attachment
from foveate.core.method import StepMethod
from foveate.core.plan import Effect
from foveate.engine.cache_kinds import bytes_of_columns, lasting_bytes
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import InputError

# Inputs with an entry for each column that can be continued after a prompt: new columns are real, and text.
_CONTINUED = {"input_ids": None, "attention_mask": 1, "mm_token_type_ids": 0}
# Those with which generate() can begin a later round.
_LATER = {**_CONTINUED, "token_type_ids": 0}


@dataclass(frozen=True)
class Rounds:
    """A conversation: a prompt and its answer, and further rounds of text.

    Attributes:
        inputs: of the first prompt, as the processor makes them: [1, S] ids. Every picture belongs to it.
        answers: ids [n] of each round's answer, n >= 1, end token last.
        turns: ids [m] of each later round, one fewer than answers: everything after the token before the last of an answer, up
            to the next answer. The end token of the answer comes first, if the chat template writes it.
    """

    inputs: Mapping[str, Any]
    answers: tuple[Tensor, ...]
    turns: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What reading one answer gave.

    Attributes:
        losses: [n] float64, cross-entropy of each token of the answer, the end token last.
        stored: [n - 1] bool, which tokens the gated layers stored; the end token is never read. None without a gate.
        window: whether the gate's last tokens are seen whatever was stored, so that a pass without a cache computes all.
        kv_bytes: of the cache after the answer, read off it, without slots that a gate rejected; None if quantized.
        answer_kv_bytes: of that, what holds tokens of this answer and of those before it; None too for a static cache.
    """

    losses: Tensor
    stored: Tensor | None
    window: bool
    kv_bytes: int | None
    answer_kv_bytes: int | None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(self.losses.mean().exp())

    @property
    def output_tokens(self) -> tuple[int, int]:
        """Tokens of the answer that are read, and those that the gated layers compute in its last pass without a cache.

        These are the stored ones and the newest, which is computed in any case; all where the gate has a window.
        """
        total = len(self.losses) - 1
        if self.stored is None or self.window or not total:
            return total, total
        return total, int(self.stored[:-1].sum()) + 1

    @property
    def computed_later(self) -> int:
        """Tokens of the answer that the gated layers compute in the last pass of a later answer."""
        return len(self.losses) - 1 if self.stored is None or self.window else int(self.stored.sum())


def has_window(attachment: Attachment | None) -> bool:
    """Whether the plan's gate lets the last tokens be seen whatever it decided."""
    gate = None if attachment is None else attachment.plan.gate
    return gate is not None and isinstance(gate.method, StepMethod) and gate.method.recent > 1


def read_rounds(
    model: Any,
    rounds: Rounds,
    attachment: Attachment | None,
    step_by_step: bool = False,
    ask: Callable[[dict[str, Any]], None] | None = None,
) -> list[Reading]:
    """Read the answers of a conversation.

    Each in one pass where that is the same as decoding: what is stored is masked as if tokens came one by one. Token by token
    under flash attention, whose masks cannot say that, under effect=mask, which chooses again at every step, and for models
    with other inputs for each column. Later rounds find the cache as the rounds before them left it, as in a chat.

    Args:
        model: the model, with `attachment` on it.
        rounds: of one conversation.
        attachment: the plan; None for the plain model.
        step_by_step: token by token in any case.
        ask: called in front of each answer with what makes generate() answer instead; its cache is a copy.

    Returns:
        A reading for each answer.

    Raises:
        InputError: for several prompts, an answer without tokens, or a later round that the model cannot be given.
    """
    inputs = dict(rounds.inputs)
    _check(rounds)
    device = inputs["input_ids"].device
    cache, known, readings, spans = None, 0, [], []
    with torch.inference_mode():
        for number, answer in enumerate(one.to(device) for one in rounds.answers):
            if number:
                inputs = _next_round(inputs, torch.cat([rounds.answers[number - 1][:-1], rounds.turns[number - 1]]))
            if ask is not None:
                ask(inputs if cache is None else {**inputs, CACHE: copy.deepcopy(cache)})
            if step_by_step or not _fits_one_pass(model, inputs, attachment, known):
                logits, cache = _decoded(model, inputs, answer, cache)
            else:
                logits, cache = _at_once(model, inputs, answer, attachment, cache, known)
            losses = torch.nn.functional.cross_entropy(logits.float(), answer.to(logits.device), reduction="none")
            start = inputs["input_ids"].shape[1]
            known = start + len(answer) - 1
            spans.append(slice(start, known))
            wanted = torch.zeros(known, dtype=torch.bool)
            for span in spans:
                wanted[span] = True
            stored = _stored(attachment, len(answer))
            held = lasting_bytes(cache), bytes_of_columns(cache, wanted)
            readings.append(Reading(losses.double().cpu(), stored, has_window(attachment), *held))
    return readings


def _check(rounds: Rounds) -> None:
    prompt = tuple(rounds.inputs["input_ids"].shape)
    if prompt[0] != 1 or any(answer.ndim != 1 or not len(answer) for answer in rounds.answers):
        raise InputError(f"one prompt is read, with the ids of its answers, not {prompt}")
    if len(rounds.turns) != len(rounds.answers) - 1 or any(turn.ndim != 1 or not len(turn) for turn in rounds.turns):
        raise InputError(f"{len(rounds.answers)} answers need the ids of a turn in front of each but the first")


def _next_round(inputs: Mapping[str, Any], said: Tensor) -> dict[str, Any]:
    """Inputs of a later round: all columns so far; the pictures are in the cache."""
    shape, longer = inputs["input_ids"].shape, {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            if name not in _LATER:
                raise InputError(f"this model's processor makes {name} for each column, which a later round would need too")
            filler = _LATER[name]
            new = said[None] if filler is None else value.new_full((1, len(said)), filler)
            longer[name] = torch.cat([value, new.to(value)], dim=1)
    return longer


def _stored(attachment: Attachment | None, length: int) -> Tensor | None:
    """Which tokens of the answer of `length` that was just read the gate stored."""
    if attachment is None or attachment.plan.gate is None:
        return None
    judged = attachment.trace.answer_kept if length > 1 else []
    return judged[0] if judged else torch.zeros(0, dtype=torch.bool)


def _fits_one_pass(model: Any, inputs: Mapping[str, Any], attachment: Attachment | None, known: int = 0) -> bool:
    shape = inputs["input_ids"].shape
    columns = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == shape]
    if any(name not in _CONTINUED for name in columns):
        return False
    if known and not bool(inputs.get("attention_mask", torch.ones(1)).all()):
        return False  # after a cache positions follow from the columns alone, see `_at_once`
    if attachment is None:
        return True
    masks = any(stage.effect is Effect.MASK for stage in attachment.plan.stages)
    text = model.config.get_text_config()
    return not masks and not (attachment.plan.gate is not None and "flash" in str(text._attn_implementation))


def _at_once(
    model: Any, inputs: Mapping[str, Any], answer: Tensor, attachment: Attachment | None, cache: Any, known: int
) -> tuple[Tensor, Any]:
    """One pass over the columns after the `known` ones in the cache."""
    length = inputs["input_ids"].shape[1]
    longer = dict(inputs)
    for name, filler in _CONTINUED.items():
        if name in inputs:
            given = inputs[name]
            new = answer[None, :-1] if filler is None else given.new_full((1, len(answer) - 1), filler)
            longer[name] = torch.cat([given, new.to(given)], dim=1)[:, known:]
    if known:
        # It would be of all columns, those in the cache too, and Qwen's models count as many positions as it has entries.
        longer.pop("attention_mask", None)
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = len(answer)  # large vocabularies: a prompt's logits may take gigabytes
    cache = DynamicCache(config=model.config) if cache is None else cache
    with attachment.conversation(prompt_length=length) if attachment is not None else nullcontext():
        out = model(**longer, **{CACHE: cache}, use_cache=True, **options)
    return out.logits[0, -len(answer) :], cache_in(out)


class _Forced(LogitsProcessor):
    """Says the next token of the answer whatever the model would."""

    def __init__(self, answer: Tensor, start: int) -> None:
        self.answer, self.start = answer, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[input_ids.shape[1] - self.start]] = 0
        return forced


def _decoded(model: Any, inputs: Mapping[str, Any], answer: Tensor, cache: Any) -> tuple[Tensor, Any]:
    out = model.generate(
        **inputs,
        **({} if cache is None else {CACHE: cache}),
        max_new_tokens=len(answer),
        do_sample=False,
        num_beams=1,
        output_logits=True,  # before any processor
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([_Forced(answer, inputs["input_ids"].shape[1])]),
    )
    if len(out.logits) != len(answer):
        raise InputError("an answer that holds the end token inside cannot be read token by token: cut it there")
    return torch.cat(out.logits), cache_in(out)
