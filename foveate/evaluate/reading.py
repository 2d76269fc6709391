"""Perplexity of a given answer under a plan, by teacher forcing through the KV cache.

Dynamic-LLaVA's protocol for generation (arXiv 2412.00876, Tab. 3): the loss of every token of the answer and of the end
token, given the prompt and the answer before it, with what the plan drops dropped and what its gate rejects not stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from foveate.api import Attachment
from foveate.core.plan import Effect
from foveate.engine.slot_cache import lasting_bytes
from foveate.errors import InputError

# Inputs with an entry for each column that can be continued behind a prompt: new columns are real, and text.
_CONTINUED = {"input_ids": None, "attention_mask": 1, "mm_token_type_ids": 0}


@dataclass(frozen=True)
class Reading:
    """What reading one answer gave.

    Attributes:
        losses: [n] float64, cross-entropy of each token of the answer, the end token last.
        stored: [n - 1] bool, which tokens the gated layers stored; the end token is never read. None without a gate.
        kv_bytes: of the cache behind the answer, read off it, without slots that a gate rejected; None if quantized.
    """

    losses: Tensor
    stored: Tensor | None
    kv_bytes: int | None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(self.losses.mean().exp())

    @property
    def output_tokens(self) -> tuple[int, int]:
        """Tokens of the answer that are read, and those that the gated layers compute in its last pass without a cache.

        These are the stored ones and the newest, which is computed in any case.
        """
        total = len(self.losses) - 1
        if self.stored is None or not total:
            return total, total
        return total, int(self.stored[:-1].sum()) + 1


def read_answer(
    model: Any, inputs: Mapping[str, Any], answer: Tensor, attachment: Attachment | None, step_by_step: bool = False
) -> Reading:
    """Read an answer to a prompt.

    In one pass where that is the same as decoding: what is stored is masked as if tokens came one by one. Token by token
    under flash attention, whose masks cannot say that, under effect=mask, which chooses anew at every step, and for models
    with other inputs for each column.

    Args:
        model: the model, with `attachment` on it.
        inputs: of one prompt, as the processor makes them: [1, S] ids.
        answer: [n] ids that end with the end token, n >= 1.
        attachment: the plan; None for the plain model.
        step_by_step: token by token in any case.

    Raises:
        InputError: for several prompts or an answer without tokens.
    """
    if inputs["input_ids"].shape[0] != 1 or answer.ndim != 1 or not len(answer):
        raise InputError(f"read_answer takes one prompt and the ids of its answer, not {tuple(inputs['input_ids'].shape)}")
    answer = answer.to(inputs["input_ids"].device)
    with torch.inference_mode():
        if step_by_step or not _fits_one_pass(model, inputs, attachment):
            logits, cache = _decoded(model, inputs, answer)
        else:
            logits, cache = _at_once(model, inputs, answer, attachment)
        losses = torch.nn.functional.cross_entropy(logits.float(), answer.to(logits.device), reduction="none").double().cpu()
    stored = None
    if attachment is not None and attachment.plan.gate is not None:
        judged = attachment.trace.answer_kept if len(answer) > 1 else []
        stored = judged[0] if judged else torch.zeros(0, dtype=torch.bool)
    return Reading(losses, stored, lasting_bytes(cache))


def _fits_one_pass(model: Any, inputs: Mapping[str, Any], attachment: Attachment | None) -> bool:
    shape = inputs["input_ids"].shape
    columns = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == shape]
    if any(name not in _CONTINUED for name in columns):
        return False
    if attachment is None:
        return True
    masks = any(stage.effect is Effect.MASK for stage in attachment.plan.stages)
    text = model.config.get_text_config()
    return not masks and not (attachment.plan.gate is not None and "flash" in str(text._attn_implementation))


def _at_once(model: Any, inputs: Mapping[str, Any], answer: Tensor, attachment: Attachment | None) -> tuple[Tensor, Any]:
    length = inputs["input_ids"].shape[1]
    longer = dict(inputs)
    for name, filler in _CONTINUED.items():
        if name in inputs:
            known = inputs[name]
            new = answer[None, :-1] if filler is None else known.new_full((1, len(answer) - 1), filler)
            longer[name] = torch.cat([known, new.to(known)], dim=1)
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = len(answer)  # large vocabularies: a prompt's logits may take gigabytes
    cache = DynamicCache(config=model.config)
    with attachment.conversation(prompt_length=length) if attachment is not None else nullcontext():
        out = model(**longer, past_key_values=cache, use_cache=True, **options)
    return out.logits[0, -len(answer) :], out.past_key_values


class _Forced(LogitsProcessor):
    """Says the next token of the answer whatever the model would."""

    def __init__(self, answer: Tensor, start: int) -> None:
        self.answer, self.start = answer, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[input_ids.shape[1] - self.start]] = 0
        return forced


def _decoded(model: Any, inputs: Mapping[str, Any], answer: Tensor) -> tuple[Tensor, Any]:
    out = model.generate(
        **inputs,
        max_new_tokens=len(answer),
        do_sample=False,
        num_beams=1,
        output_logits=True,  # before any processor
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([_Forced(answer, inputs["input_ids"].shape[1])]),
    )
    if len(out.logits) != len(answer):
        raise InputError("an answer that holds the end token inside cannot be read token by token: cut it there")
    return torch.cat(out.logits), out.past_key_values
