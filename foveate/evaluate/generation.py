"""Plans compared on long answers: perplexity, overlap of generated answers, lengths, FLOPs and KV bytes.

Dynamic-LLaVA's protocol (arXiv 2412.00876, Tab. 3), in several rounds too: scores of a sample are means over its rounds,
lengths their sums. Differs from it: FLOPs without a cache are also counted exactly and with the prompt, beside the paper's
formula over the output alone; KV bytes are those of the keys and values in the cache, not the allocator's; between rounds the
end token is read where the chat template writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

from torch import Tensor

from foveate.api import Attachment, attach
from foveate.api.comparison import seeded
from foveate.core.plan import Plan
from foveate.cost.conventions import dynamic_llava_layer_flops
from foveate.cost.flops import decoder_prefill_flops, lm_head_flops
from foveate.cost.tokens import visual_tokens_per_layer
from foveate.engine.cache_kinds import lasting_bytes, stored_bytes
from foveate.engine.carrying import unwrap
from foveate.engine.compat import cache_in
from foveate.errors import InputError
from foveate.evaluate.intervals import Mean, difference, mean_of
from foveate.evaluate.overlap import OverlapScore
from foveate.evaluate.reading import Reading, Rounds, has_window, read_rounds
from foveate.families import family_for
from foveate.spec import as_plan, parse

PLAIN = "none"


@dataclass(frozen=True)
class Sample:
    """One conversation: the true answer of each round as text, and `rounds()`, which makes the tokens of all of it."""

    name: str
    answers: tuple[str, ...]
    rounds: Callable[[], Rounds]


@dataclass(frozen=True)
class Generated:
    """What the model says itself, greedily, in each round after the true answers of the rounds before it.

    Attributes:
        answers: the texts.
        overlap: with the references, mean over rounds.
        output_tokens: those read again, and those that the gated layers compute in a last pass without a cache; sums.
        kv_bytes_held, kv_bytes: in the cache at the end of the last round; the second without slots that a gate rejected and
            that wait to be taken away. None if quantized.
    """

    answers: tuple[str, ...]
    overlap: float
    output_tokens: tuple[int, int]
    kv_bytes_held: int | None
    kv_bytes: int | None


@dataclass(frozen=True)
class Score:
    """One sample under one plan.

    Attributes:
        perplexity: of the reference answer; mean over rounds.
        output_tokens: of the references, as of `Generated`.
        kv_bytes: of everything that was read, without rejected slots; None if quantized.
        output_kv_bytes: of the answers' tokens alone; None for a static cache too.
        last_pass_flops: of the decoder and the LM head, 2 x MAC, in the last pass without a cache, over everything; None where
            more than shapes decides how many tokens stay.
        output_flops: Eq. 13 of the paper over the answers' tokens alone.
        generated: None if nothing was generated.
    """

    perplexity: float
    output_tokens: tuple[int, int]
    kv_bytes: int | None
    output_kv_bytes: int | None
    last_pass_flops: int | None
    output_flops: float
    generated: Generated | None


@dataclass(frozen=True)
class Generation:
    """How answers are generated for their overlap with the reference."""

    decode: Callable[[Tensor], str]
    score: OverlapScore
    new_tokens: int = 1024
    options: Mapping[str, Any] = field(default_factory=dict)  # for generate: sampling, beams
    seed: int = 0  # each conversation that is drawn starts from it


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
    parsed = {str(plan): plan for plan in (Plan(), *map(parse, plans))}
    for plan in parsed.values():
        with attach(base, plan):
            pass
    scores: dict[str, list[Score]] = {}
    for text, plan in parsed.items():
        scores[text] = score_samples(base, samples, plan, generation, step_by_step, partial(note, text))
    return scores


def score_samples(
    model: Any,
    samples: Sequence[Sample],
    plan: str | Plan,
    generation: Generation | None = None,
    step_by_step: bool = False,
    note: Callable[[int], None] = lambda done: None,
) -> list[Score]:
    """A score for each sample under one plan; arguments as of `evaluate`, `note` is called with how many samples are done."""
    base, plan, scores = unwrap(model), as_plan(plan), []
    attachment = attach(base, plan) if plan.stages else None  # the plain model carries no hook at all
    with attachment or nullcontext():
        for sample in samples:
            scores.append(_score(base, sample, attachment, generation, step_by_step))
            note(len(scores))
    return scores


def _score(
    model: Any, sample: Sample, attachment: Attachment | None, generation: Generation | None, step_by_step: bool
) -> Score:
    rounds = sample.rounds()
    talk = None if generation is None else _Talk(model, sample, attachment, generation)
    readings = read_rounds(model, rounds, attachment, step_by_step, talk)
    perplexities = [reading.perplexity for reading in readings]
    broken = next((value for value in perplexities if not isfinite(value)), None)
    if broken is not None:
        raise InputError(f"{sample.name}: the perplexity is {broken}; load the model in bfloat16 or float32")
    output = _output_tokens(readings)
    whole, eq13 = _flops(model, rounds, output, attachment)
    return Score(
        perplexity=sum(perplexities) / len(perplexities),
        output_tokens=output,
        kv_bytes=readings[-1].kv_bytes,
        output_kv_bytes=readings[-1].answer_kv_bytes,
        last_pass_flops=whole,
        output_flops=eq13,
        generated=None if talk is None else talk.generated(),
    )


def _output_tokens(readings: Sequence[Reading]) -> tuple[int, int]:
    """Of all rounds: tokens read, and those computed in the last pass; of earlier answers only what was stored is."""
    *earlier, last = readings
    total, computed = last.output_tokens
    for reading in earlier:
        total += reading.output_tokens[0]
        computed += reading.computed_later
    return total, computed


def _flops(
    model: Any, rounds: Rounds, output_tokens: tuple[int, int], attachment: Attachment | None
) -> tuple[int | None, float]:
    family = family_for(model.config)
    decoder = family.model_shape(model.config).decoder
    plan = Plan() if attachment is None else attachment.plan
    gate = decoder.layers if plan.gate is None else plan.gate.site.layer
    assert gate is not None
    total, computed = output_tokens
    output = [total if layer < gate else computed for layer in range(decoder.layers)]
    eq13 = sum(dynamic_llava_layer_flops(decoder, tokens) for tokens in output)
    if not all(stage.budget is None or stage.budget.is_fixed for stage in plan.stages):
        return None, eq13  # a threshold's count depends on the scores
    ids = rounds.inputs["input_ids"]
    holders = {kind: int((ids == token).sum()) for kind, token in family.placeholder_ids(model.config).items()}
    visual, left = sum(holders.values()), [sum(holders.values())] * decoder.layers
    if visual and attachment is not None:
        media = [shape for shapes in family.media(model.config, rounds.inputs, holders).values() for shape in shapes]
        left = list(visual_tokens_per_layer(plan, media, decoder.layers))
    text = ids.shape[1] - visual + sum(len(turn) for turn in rounds.turns)
    tokens = [text + count + own for count, own in zip(left, output, strict=True)]
    return decoder_prefill_flops(decoder, tokens, text) + lm_head_flops(decoder, ids.shape[1]), eq13


class _Talk:
    """Lets the model answer in each round; called with what generate() takes."""

    def __init__(self, model: Any, sample: Sample, attachment: Attachment | None, generation: Generation) -> None:
        self.model, self.sample, self.attachment, self.generation = model, sample, attachment, generation
        self.answers: list[str] = []
        self.total = self.computed = 0
        self.cache: Any = None

    def __call__(self, inputs: Mapping[str, Any]) -> None:
        how = {"do_sample": False, "num_beams": 1, **self.generation.options}
        with seeded(self.model, self.generation.seed + len(self.answers)):
            out = self.model.generate(**inputs, **how, max_new_tokens=self.generation.new_tokens, return_dict_in_generate=True)
        said = out.sequences[0, inputs["input_ids"].shape[1] :]
        total = computed = len(said) - 1
        gated = self.attachment is not None and self.attachment.plan.gate is not None
        if self.attachment is not None and gated and total and not has_window(self.attachment):
            (stored,) = self.attachment.trace.answer_kept
            computed = int(stored[:-1].sum()) + 1
        self.answers.append(self.generation.decode(said).strip())
        self.total, self.computed, self.cache = self.total + total, self.computed + computed, cache_in(out)

    def generated(self) -> Generated:
        """What was said in all rounds."""
        pairs = zip(self.answers, self.sample.answers, strict=True)
        overlaps = [self.generation.score.of(answer, reference) for answer, reference in pairs]
        return Generated(
            answers=tuple(self.answers),
            overlap=sum(overlaps) / len(overlaps),
            output_tokens=(self.total, self.computed),
            kv_bytes_held=stored_bytes(self.cache),
            kv_bytes=lasting_bytes(self.cache),
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
    output_kv_bytes: float | None
    last_pass_flops: float | None
    output_flops: float
    kv_share: float | None
    output_kv_share: float | None
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
    output_kv = _mean(one.output_kv_bytes for one in own)
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
        output_kv_bytes=output_kv,
        last_pass_flops=flops,
        output_flops=eq13,
        kv_share=_share(kv, _mean(one.kv_bytes for one in plain)),
        output_kv_share=_share(output_kv, _mean(one.output_kv_bytes for one in plain)),
        last_pass_flops_share=_share(flops, _mean(one.last_pass_flops for one in plain)),
        output_flops_share=_share(eq13, _mean(one.output_flops for one in plain)),
    )


def _mean(values: Any) -> float | None:
    known = list(values)
    return None if any(value is None for value in known) else sum(known) / len(known)


def _share(value: float | None, plain: float | None) -> float | None:
    return None if value is None or not plain else value / plain
