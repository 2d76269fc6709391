"""How many visual tokens a plan leaves to each decoder layer, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from foveate.core.layout import Role
from foveate.core.plan import Effect, Plan, Stage, join_groups
from foveate.core.shape import EncoderShape, MediumShape
from foveate.core.site import SiteKind
from foveate.errors import PlanError, UnsupportedCombination

_COUNTED_SITES = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER, SiteKind.DECODE)


def check_countable(plan: Plan, layers: int) -> None:
    """Refuse a plan whose cost does not follow from what is counted here.

    Raises:
        PlanError: for a layer that a decoder of `layers` layers does not have.
        UnsupportedCombination: for stages outside the decoder, or on tokens that are not visual.
    """
    for stage in plan.stages:
        if stage.site.kind not in _COUNTED_SITES:
            raise UnsupportedCombination(
                f"the cost of a stage at {stage.site} is not estimated: leave it out, or measure it on the model"
            )
        if stage.role is not (Role.OUTPUT if stage.site.kind is SiteKind.DECODE else Role.VISUAL):
            raise UnsupportedCombination(
                f"the cost of a stage on {stage.role.name.lower()} tokens is not estimated: only visual tokens are counted"
            )
        layer = stage.site.layer if stage.site.kind is SiteKind.DECODE else stage.site.decoder_layer
        if layer is not None and layer >= layers:
            raise PlanError(f"layer={layer}: the decoder has {layers} layers, write a number from 1 to {layers - 1}")


def encoder_sequences_per_layer(plan: Plan, encoder: EncoderShape, medium: MediumShape) -> list[tuple[int, ...]]:
    """Lengths of the sequences (crops, frames) of one medium that enter each encoder layer, prefix tokens included."""
    prefix, unit = encoder.prefix_tokens, medium.patches_per_token
    lengths = list(medium.encoder_sequences or (medium.encoder_tokens,))
    layers = []
    for layer in range(encoder.layers):
        stage = plan.encoder_stages.get(layer)
        if stage is not None:
            lengths = [prefix + kept_patches(stage, length - prefix, unit) for length in lengths]
        layers.append(tuple(lengths))
        if encoder.shrinks(layer, medium):
            lengths = [length // 4 for length in lengths]
    return layers


def kept_patches(stage: Stage, patches: int, unit: int) -> int:
    """How many patches of a sequence an encoder stage keeps. A count counts patches; units of patches stay together."""
    if stage.budget is not None and stage.budget.count is not None:
        return stage.kept_of(patches, None) // unit * unit
    return stage.kept_of(patches // unit, None) * unit


def separator_count(media: Sequence[MediumShape]) -> int:
    """Visual tokens of all media that are off the grid and stay under every plan."""
    return sum(len(medium.separators) for medium in media)


def visual_tokens_per_layer(plan: Plan, media: Sequence[MediumShape], layers: int) -> tuple[int, ...]:
    """Visual tokens of one sample, separators included, that enter each decoder layer, in whole tokens as the engine keeps."""
    extra = separator_count(media)
    return tuple(tokens + extra for tokens in plan.grid_tokens_per_layer(media, layers))


def unrounded_tokens_per_layer(plan: Plan, media: Sequence[MediumShape], layers: int) -> tuple[float, ...]:
    """The same without rounding: keep=0.1 of 576 counts as 57.6 tokens, as FastV's tables do.

    A ratio is the same for every scope. A fixed count is a whole number of tokens and is resolved as the engine does.
    """
    extra = separator_count(media)
    alive = [[Fraction(count) for count in plan.leave_pieces(medium)] for medium in media]
    by_layer = {stage.site.decoder_layer: stage for stage in plan.stages if stage.effect is Effect.DROP}
    counts = []
    for layer in range(layers):
        stage = by_layer.get(layer)
        if stage is not None and alive:
            alive = _unrounded_kept(stage, join_groups(alive, media, stage.scope), media)
        counts.append(float(sum(map(sum, alive)) + extra))
    return tuple(counts)


def judged_groups(plan: Plan, media: Sequence[MediumShape], judge: Stage) -> list[int]:
    """Sizes of the groups among which a stage of the decoder chooses, in one sample."""
    alive = [[plan.leave_encoder(h * w, medium.patches_per_token) for _, h, w in medium.pieces] for medium in media]
    for stage in plan.stages:
        if stage is judge:
            break
        if stage.site.decoder_layer is not None and alive:
            alive = stage.kept_groups(join_groups(alive, media, stage.scope), media)
    return [count for own in join_groups(alive, media, judge.scope) for count in own] if alive else []


def _unrounded_kept(stage: Stage, alive: list[list[Fraction]], media: Sequence[MediumShape]) -> list[list[Fraction]]:
    if stage.budget is not None and stage.budget.ratio is not None:
        return [[count * Fraction(stage.budget.ratio) for count in own] for own in alive]
    kept = stage.kept_groups([[int(count) for count in own] for own in alive], media)
    return [[Fraction(count) for count in own] for own in kept]


def stored_answer_tokens(plan: Plan, tokens: int, layers: int) -> list[int]:
    """How many of the `tokens` tokens of an answer that were read again each decoder layer stores, as expected."""
    return [round(plan.stored_share(layer) * tokens) for layer in range(layers)]
