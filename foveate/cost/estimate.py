"""What a plan saves, before anything runs: one record of tokens, FLOPs and KV bytes, plain model against plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from foveate.core.budget import Budget
from foveate.core.plan import Plan
from foveate.core.shape import MediumShape, ModelShape
from foveate.cost.conventions import Convention, Workload, convention_named
from foveate.cost.flops import encoder_selection_flops, judging_flops, selection_flops
from foveate.cost.kv_bytes import kv_bytes
from foveate.cost.tokens import (
    check_countable,
    encoder_sequences_per_layer,
    separator_count,
    stored_answer_tokens,
    unrounded_tokens_per_layer,
    visual_tokens_per_layer,
)
from foveate.errors import InputError, PlanError


@dataclass(frozen=True)
class Comparison:
    """One number of the plain model and the same number under the plan."""

    plain: float
    plan: float

    @property
    def ratio(self) -> Comparison:
        """Both as a share of the plain number; 1 where they are equal, also at 0."""
        return Comparison(1.0, 1.0 if self.plan == self.plain else self.plan / self.plain)

    def times(self, factor: int) -> Comparison:
        """Both multiplied."""
        return Comparison(self.plain * factor, self.plan * factor)

    def to_json(self) -> dict[str, float]:
        """`{"plain": ..., "plan": ...}`."""
        return {"plain": self.plain, "plan": self.plan}


@dataclass(frozen=True)
class CostEstimate:
    """Estimated cost of a batch of equal samples. None: the convention leaves it out.

    Attributes:
        visual_tokens_per_layer: of one sample, entering each decoder layer; plain and plan.
        prefill_flops: encoder, projector, decoder and LM head, as far as the convention counts them, in `unit`.
        llm_prefill_flops: the decoder's (and LM head's) part of it.
        decode_flops: all decode steps together.
        kv_bytes: KV cache when the last token has been generated: prompt and new_tokens - 1 (the last is never fed back).
        selection_flops: what the plan's choices cost in prefill on top, in FLOPs; not part of `prefill_flops`.
        encoder_flops: encoder and projector, part of `prefill_flops`.
        encoder_tokens: of one sample, entering each encoder layer; plain and plan. Empty if the media do not say.
    """

    visual_tokens_per_layer: tuple[tuple[float, ...], tuple[float, ...]]
    prefill_flops: Comparison
    llm_prefill_flops: Comparison
    decode_flops: Comparison | None
    kv_bytes: Comparison
    selection_flops: int
    encoder_flops: Comparison | None
    encoder_tokens: tuple[tuple[int, ...], tuple[int, ...]]
    convention: str
    convention_words: str
    unit: str
    text_tokens: int
    new_tokens: int
    batch: int
    dtype_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain dict, ready for json.dumps; ratio keys hold plain 1.0 and the plan's share."""
        plain, plan = self.visual_tokens_per_layer
        return {
            "visual_tokens_per_layer": {"plain": list(plain), "plan": list(plan)},
            "prefill_flops": self.prefill_flops.to_json(),
            "prefill_flops_ratio": self.prefill_flops.ratio.to_json(),
            "llm_prefill_flops": self.llm_prefill_flops.to_json(),
            "llm_prefill_flops_ratio": self.llm_prefill_flops.ratio.to_json(),
            "decode_flops": None if self.decode_flops is None else self.decode_flops.to_json(),
            "kv_bytes": self.kv_bytes.to_json(),
            "kv_bytes_ratio": self.kv_bytes.ratio.to_json(),
            "selection_flops": self.selection_flops,
            "encoder_flops": None if self.encoder_flops is None else self.encoder_flops.to_json(),
            "encoder_flops_ratio": None if self.encoder_flops is None else self.encoder_flops.ratio.to_json(),
            "encoder_tokens_per_layer": {"plain": list(self.encoder_tokens[0]), "plan": list(self.encoder_tokens[1])},
            "convention": self.convention,
            "convention_words": self.convention_words,
            "unit": self.unit,
            "text_tokens": self.text_tokens,
            "new_tokens": self.new_tokens,
            "batch": self.batch,
            "dtype_bytes": self.dtype_bytes,
        }

    def summary(self) -> str:
        """One line: `576 -> 288 visual tokens from layer 2, LLM prefill FLOPs 55 %, KV 53 %`."""
        prefill, kv = self.llm_prefill_flops.ratio.plan, self.kv_bytes.ratio.plan
        return f"{self._tokens_text()}, LLM prefill FLOPs {100 * prefill:.0f} %, KV {100 * kv:.0f} %"

    def _tokens_text(self) -> str:
        plain, plan = self.visual_tokens_per_layer
        if not plain[0]:
            return "no visual tokens"
        before = (plain[0], *plan)
        drops = [(layer, after) for layer, (old, after) in enumerate(zip(before, plan, strict=False)) if after != old]
        if not drops:
            return f"{plain[0]:g} visual tokens in every layer"
        places = [f"{after:g}{'' if later else ' visual tokens'} {_place(layer)}" for later, (layer, after) in enumerate(drops)]
        return " -> ".join([f"{plain[0]:g}", *places])


def _place(layer: int) -> str:
    return f"from layer {layer}" if layer else "before the LLM"


def estimate_cost(
    shape: ModelShape,
    plan: Plan,
    media: Sequence[MediumShape],
    text_tokens: int,
    new_tokens: int = 0,
    batch: int = 1,
    dtype_bytes: int = 2,
    convention: str = "exact",
) -> CostEstimate:
    """Estimate tokens, FLOPs and KV bytes of a prompt under a plan, from shapes alone.

    Args:
        media: images and videos of one sample.
        text_tokens: all other prompt tokens of one sample, special tokens too.
        new_tokens: tokens to generate; 0 and 1 are a prefill alone, whose logits give the first token.
        batch: equal samples; FLOPs and bytes are for all of them.
        dtype_bytes: bytes per number in the KV cache.
        convention: a name in `CONVENTIONS`.

    Raises:
        UnknownName: for an unknown convention.
        PlanError: for a stage at a layer that the decoder does not have.
        BudgetError: for a threshold, whose count depends on the scores.
        UnsupportedCombination: for a stage outside the decoder, or on tokens that are not visual.
        InputError: for negative counts, an empty prompt, or a medium without the windows its encoder needs.
    """
    rule = convention_named(convention)
    _check_numbers(text_tokens, new_tokens, batch, dtype_bytes)
    _check_prompt(text_tokens, media)
    decoder = shape.decoder
    check_countable(plan, decoder.layers)
    both = (Plan(), plan)
    visual: list[tuple[int, ...]] | list[tuple[float, ...]]
    if rule.program is not None:
        visual = whole = [rule.program.visual(shape, some, media) for some in both]
    else:
        whole = [visual_tokens_per_layer(some, media, decoder.layers) for some in both]
        visual = whole if rule.rounds else [unrounded_tokens_per_layer(some, media, decoder.layers) for some in both]
    plain, planned = (
        rule.count(shape, Workload(tuple(media), counts, text_tokens, new_tokens, some))
        for counts, some in zip(visual, both, strict=True)
    )
    # The last new token is never fed back, so the cache ends without it.
    answers = [stored_answer_tokens(some, max(new_tokens - 1, 0), decoder.layers) for some in (Plan(), plan)]
    stored = [
        kv_bytes(decoder, [text_tokens + count + answer for count, answer in zip(counts, own, strict=True)], dtype_bytes)
        for counts, own in zip(whole, answers, strict=True)
    ]
    prompt = [text_tokens + count for count in whole[1]]
    return CostEstimate(
        visual_tokens_per_layer=(tuple(visual[0]), tuple(visual[1])),
        prefill_flops=Comparison(plain.prefill, planned.prefill).times(batch),
        llm_prefill_flops=Comparison(plain.llm_prefill, planned.llm_prefill).times(batch),
        decode_flops=_both(plain.decode, planned.decode, batch),
        kv_bytes=Comparison(*stored).times(batch),
        selection_flops=batch
        * (
            selection_flops(decoder, plan, prompt, text_tokens)
            + encoder_selection_flops(shape, media, plan)
            + judging_flops(plan, media)
        ),
        encoder_flops=_both(plain.encoder, planned.encoder, batch),
        encoder_tokens=(_encoder_tokens(rule, Plan(), shape, media), _encoder_tokens(rule, plan, shape, media)),
        convention=rule.name,
        convention_words=rule.words,
        unit=rule.unit,
        text_tokens=text_tokens,
        new_tokens=new_tokens,
        batch=batch,
        dtype_bytes=dtype_bytes,
    )


def grid(
    shape: ModelShape,
    layers: Sequence[int],
    keeps: Sequence[float],
    media: Sequence[MediumShape],
    text_tokens: int,
    convention: str = "exact",
) -> list[list[float]]:
    """LLM prefill FLOPs as a share of the plain model's, for one cut per plan: a row for each layer, a column for each keep.

    Layer 0 cuts before the LLM. Each medium keeps its own share, so the table is the same for every method.

    Args:
        layers: decoder layers in front of which the tokens go, 0 <= layer < decoder layers.
        keeps: keep ratios, 0 < keep <= 1.
    """
    rule = convention_named(convention)
    _check_prompt(text_tokens, media)
    total = shape.decoder.layers
    for layer in layers:
        if not 0 <= layer < total:
            raise PlanError(f"layer={layer}: the decoder has {total} layers, write a number from 0 to {total - 1}")
    full = _kept(rule, shape, 1, media)
    kept = [_kept(rule, shape, keep, media) for keep in keeps]

    def llm_prefill(layer: int, left: float) -> float:
        visual = (full,) * layer + (left,) * (total - layer)
        return rule.count(shape, Workload((), visual, text_tokens, 0)).llm_prefill

    plain = llm_prefill(total, full)
    return [[Comparison(plain, llm_prefill(layer, left)).ratio.plan for left in kept] for layer in layers]


def _kept(rule: Convention, shape: ModelShape, keep: float, media: Sequence[MediumShape]) -> float:
    budget = Budget.of_ratio(keep)
    if rule.program is not None:
        return float(rule.program.kept(shape, budget, media))
    if rule.rounds:
        return float(sum(budget.resolve(medium.grid_tokens) for medium in media) + separator_count(media))
    return float(sum(Decimal(str(keep)) * medium.grid_tokens for medium in media) + separator_count(media))


def _both(plain: float | None, planned: float | None, batch: int) -> Comparison | None:
    return None if plain is None or planned is None else Comparison(plain, planned).times(batch)


def _encoder_tokens(rule: Convention, plan: Plan, shape: ModelShape, media: Sequence[MediumShape]) -> tuple[int, ...]:
    known = [medium for medium in media if medium.encoder_tokens]
    if rule.program is not None:
        per_medium = [rule.program.encoder(shape, plan, medium) for medium in known]
    else:
        per_medium = [encoder_sequences_per_layer(plan, shape.encoder, medium) for medium in known]
    return tuple(sum(map(sum, layer)) for layer in zip(*per_medium, strict=True))


def _check_numbers(text_tokens: int, new_tokens: int, batch: int, dtype_bytes: int) -> None:
    for name, value, least in (
        ("text_tokens", text_tokens, 0),
        ("new_tokens", new_tokens, 0),
        ("batch", batch, 1),
        ("dtype_bytes", dtype_bytes, 1),
    ):
        if value < least:
            raise InputError(f"{name}={value}: write a number of at least {least}")


def _check_prompt(text_tokens: int, media: Sequence[MediumShape]) -> None:
    if text_tokens == 0 and not any(medium.tokens for medium in media):
        raise InputError("an empty prompt costs nothing to compare: give text_tokens or media")
