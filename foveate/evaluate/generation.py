"""Plans compared on long answers: perplexity, overlap of generated answers, lengths, FLOPs and KV bytes.

Dynamic-LLaVA's protocol (arXiv 2412.00876, Tab. 3). Differs from it: FLOPs without a cache are also counted
exactly and with the prompt, beside the paper's formula over the output alone; KV bytes are those of the keys and values in
the cache, not the allocator's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from foveate.api import Attachment, attach
from foveate.cost.conventions import dynamic_llava_layer_flops
from foveate.cost.flops import decoder_prefill_flops, lm_head_flops
from foveate.cost.tokens import visual_tokens_per_layer
from foveate.engine.attach import unwrap
from foveate.engine.slot_cache import lasting_bytes, stored_bytes
from foveate.errors import InputError
from foveate.evaluate.intervals import Mean, difference, mean_of
from foveate.evaluate.overlap import OverlapScore
from foveate.evaluate.reading import Reading, read_answer
from foveate.families import family_for
from foveate.spec import Plan

PLAIN = "none"


@dataclass(frozen=True)
class Sample:
    """One question. `prompt()` makes the inputs of its prompt [1, S] and the ids [n] of the answer with its end token."""

    name: str
    question: str
    answer: str
    prompt: Callable[[], tuple[Mapping[str, Any], Tensor]]


@dataclass(frozen=True)
class Generated:
    """What the model says itself, greedily.

    Attributes:
        answer: the text.
        overlap: with the reference.
        output_tokens: those read again, and those that the gated layers compute in a last pass without a cache.
        kv_bytes_held, kv_bytes: in the cache at the end; the second without slots that a gate rejected and that wait to be
            taken away. None if quantized.
    """

    answer: str
    overlap: float
    output_tokens: tuple[int, int]
    kv_bytes_held: int | None
    kv_bytes: int | None


@dataclass(frozen=True)
class Score:
    """One sample under one plan.

    Attributes:
        perplexity: of the reference answer.
        output_tokens: of the reference, as of `Generated`.
        kv_bytes: of prompt and reference, without rejected slots; None if quantized.
        last_pass_flops: of the decoder and the LM head, 2 x MAC, in the last pass without a cache, over prompt and answer;
            None where more than shapes decides how many tokens stay.
        output_flops: Eq. 13 of the paper over the answer's tokens alone.
        generated: None if nothing was generated.
    """

    perplexity: float
    output_tokens: tuple[int, int]
    kv_bytes: int | None
    last_pass_flops: int | None
    output_flops: float
    generated: Generated | None


@dataclass(frozen=True)
class Generation:
    """How answers are generated for their overlap with the reference."""

    decode: Callable[[Tensor], str]
    score: OverlapScore
    new_tokens: int = 1024


def evaluate(
    model: Any,
    samples: Sequence[Sample],
    plans: Sequence[str],
    generation: Generation | None = None,
    step_by_step: bool = False,
    note: Callable[[str, int], None] = lambda plan, done: None,
) -> dict[str, list[Score]]:
    """Score every sample under the plain model and under every plan.

    Args:
        model: what `attach` takes; nothing may be attached to it.
        samples: at least one.
        plans: specs.
        generation: generate answers too; None reads the references only.
        step_by_step: read token by token, also where one pass gives the same.
        note: called with the plan and how many samples are done.

    Returns:
        By canonical plan, `none` first, a score for each sample.

    Raises:
        FoveateError: before anything runs, for a plan that does not fit the model; for a perplexity that is not finite.
    """
    if not samples:
        raise InputError("no samples to evaluate")
    base = unwrap(model)
    parsed = {str(plan): plan for plan in (Plan(), *map(Plan.parse, plans))}
    for plan in parsed.values():
        with attach(base, plan):
            pass
    scores: dict[str, list[Score]] = {}
    for text, plan in parsed.items():
        attachment = attach(base, plan) if plan.stages else None  # the plain model carries no hook at all
        with attachment or nullcontext():
            scores[text] = []
            for sample in samples:
                scores[text].append(_score(base, sample, attachment, generation, step_by_step))
                note(text, len(scores[text]))
    return scores


def _score(
    model: Any, sample: Sample, attachment: Attachment | None, generation: Generation | None, step_by_step: bool
) -> Score:
    inputs, answer = sample.prompt()
    reading = read_answer(model, inputs, answer, attachment, step_by_step)
    if not isfinite(reading.perplexity):
        raise InputError(f"{sample.name}: the perplexity is {reading.perplexity}; load the model in bfloat16 or float32")
    whole, eq13 = _flops(model, inputs, reading, attachment)
    return Score(
        perplexity=reading.perplexity,
        output_tokens=reading.output_tokens,
        kv_bytes=reading.kv_bytes,
        last_pass_flops=whole,
        output_flops=eq13,
        generated=None if generation is None else _generated(model, inputs, sample, attachment, generation),
    )


def _flops(model: Any, inputs: Mapping[str, Any], reading: Reading, attachment: Attachment | None) -> tuple[int | None, float]:
    family = family_for(model.config)
    decoder = family.model_shape(model.config).decoder
    plan = Plan() if attachment is None else attachment.plan
    gate = decoder.layers if plan.gate is None else plan.gate.site.layer
    assert gate is not None
    total, computed = reading.output_tokens
    output = [total if layer < gate else computed for layer in range(decoder.layers)]
    eq13 = sum(dynamic_llava_layer_flops(decoder, tokens) for tokens in output)
    if not all(stage.budget is None or stage.budget.is_fixed for stage in plan.stages):
        return None, eq13  # a threshold's count depends on the scores
    columns = inputs["input_ids"].shape[1]
    holders = torch.tensor(list(family.placeholder_ids(model.config).values()))
    visual = int(torch.isin(inputs["input_ids"].cpu(), holders).sum())
    left: Sequence[int] = [visual] * decoder.layers
    if attachment is not None and visual:
        left = visual_tokens_per_layer(plan, [entry.medium.shape for entry in attachment.trace.media], decoder.layers)
    tokens = [columns - visual + count + own for count, own in zip(left, output, strict=True)]
    return decoder_prefill_flops(decoder, tokens) + lm_head_flops(decoder), eq13


def _generated(
    model: Any, inputs: Mapping[str, Any], sample: Sample, attachment: Attachment | None, generation: Generation
) -> Generated:
    with torch.inference_mode():
        out = model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=generation.new_tokens, return_dict_in_generate=True
        )
    said = out.sequences[0, inputs["input_ids"].shape[1] :]
    answer = generation.decode(said).strip()
    total = computed = len(said) - 1
    if attachment is not None and attachment.plan.gate is not None and total:
        (stored,) = attachment.trace.answer_kept
        computed = int(stored[:-1].sum()) + 1
    cache = out.past_key_values
    return Generated(
        answer=answer,
        overlap=generation.score.of(answer, sample.answer),
        output_tokens=(total, computed),
        kv_bytes_held=stored_bytes(cache),
        kv_bytes=lasting_bytes(cache),
    )


@dataclass(frozen=True)
class Row:
    """One plan over all samples. Means are arithmetic, over samples; differences are plan - plain, each sample with itself.

    `shares` are means of the plan over means of the plain model. None: not measured, or not the same for all samples.
    """

    plan: str
    perplexity: Mean
    perplexity_difference: Mean
    overlap: Mean | None
    overlap_difference: Mean | None
    output_tokens: tuple[float, float]
    kv_bytes: float | None
    last_pass_flops: float | None
    output_flops: float
    kv_share: float | None
    last_pass_flops_share: float | None
    output_flops_share: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain dict, ready for json.dumps."""
        return {name: value.to_json() if isinstance(value, Mean) else value for name, value in vars(self).items()}


def summarize(scores: Mapping[str, Sequence[Score]]) -> list[Row]:
    """One row for each plan; the first plan is what the others are compared with."""
    plain = next(iter(scores.values()))
    return [_row(plan, own, plain) for plan, own in scores.items()]


def _row(plan: str, own: Sequence[Score], plain: Sequence[Score]) -> Row:
    generated, before = ([one.generated.overlap for one in some if one.generated is not None] for some in (own, plain))
    kv, flops = _mean(one.kv_bytes for one in own), _mean(one.last_pass_flops for one in own)
    eq13 = _mean(one.output_flops for one in own)
    assert eq13 is not None
    return Row(
        plan=plan,
        perplexity=mean_of([one.perplexity for one in own]),
        perplexity_difference=difference([one.perplexity for one in plain], [one.perplexity for one in own]),
        overlap=mean_of(generated) if generated else None,
        overlap_difference=difference(before, generated) if generated else None,
        output_tokens=(_mean(one.output_tokens[0] for one in own) or 0.0, _mean(one.output_tokens[1] for one in own) or 0.0),
        kv_bytes=kv,
        last_pass_flops=flops,
        output_flops=eq13,
        kv_share=_share(kv, _mean(one.kv_bytes for one in plain)),
        last_pass_flops_share=_share(flops, _mean(one.last_pass_flops for one in plain)),
        output_flops_share=_share(eq13, _mean(one.output_flops for one in plain)),
    )


def _mean(values: Any) -> float | None:
    known = list(values)
    return None if any(value is None for value in known) else sum(known) / len(known)


def _share(value: float | None, plain: float | None) -> float | None:
    return None if value is None or not plain else value / plain
