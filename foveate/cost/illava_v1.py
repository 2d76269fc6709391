"""Counting as the program of iLLaVA's authors does (arXiv:2412.06263v1, January 2025), where the engine does otherwise.

- A merge stands inside an encoder block: its attention runs over the tokens that arrive, its MLP over those that are left. In
  a plan that is the stage in front of the next block.
- LLaVA-OneVision: the n survivors of a crop are laid out as a square of sqrt(n) cells, although they are scattered; unpadding,
  shrinking to nine tiles, pooling and newlines are its own. Newlines of a tiled image are ranked and merged with the
  visual tokens; the one after a lone crop or a video is not.
- Qwen2-VL removes a share of the patches, rounded down to whole groups; Qwen3-VL (2026) keeps a share, rounded down to groups.
- A stage in front of a decoder layer removes round(n (1 - keep)) of n tokens, in floating point. Each medium is ranked alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from foveate.core.budget import Budget
from foveate.core.plan import Effect, Plan, Stage
from foveate.core.shape import MediumShape, ModelShape
from foveate.cost.flops import encoder_attention_flops, matmul_flops
from foveate.errors import PlanError, UnsupportedCombination

_ONEVISION = "llava_onevision"
_MOST_TILES = 9  # anyres_max_9
_FRAME_STRIDE = 2


def encoder_sequences(shape: ModelShape, plan: Plan, medium: MediumShape) -> list[tuple[int, ...]]:
    """Lengths of the sequences (crops, frames) of one medium that enter each encoder layer, prefix tokens included.

    Raises:
        PlanError: for a stage in front of a layer that the encoder does not have.
    """
    prefix = shape.encoder.prefix_tokens
    lengths = tuple(medium.encoder_sequences or (medium.encoder_tokens,))
    layers = []
    _check_layers(shape, plan)
    for layer in range(shape.encoder.layers):
        stage = plan.encoder_stages.get(layer)
        if stage is not None:
            lengths = tuple(prefix + _kept_patches(shape, stage, medium, length - prefix) for length in lengths)
        layers.append(lengths)
    return layers


def encoder_flops(shape: ModelShape, plan: Plan, medium: MediumShape) -> int:
    """FLOPs of the encoder's blocks for one medium: attention over what enters a block, the MLP over what leaves it."""
    if not medium.encoder_tokens:
        return 0
    encoder, total = shape.encoder, 0
    sequences = encoder_sequences(shape, plan, medium)
    mlp = (3 if encoder.gated_mlp else 2) * encoder.hidden * encoder.intermediate
    for layer, (entering, leaving) in enumerate(pairwise([*sequences, sequences[-1]])):
        total += matmul_flops(sum(entering), 1, encoder.attention_weights) + matmul_flops(sum(leaving), 1, mlp)
        total += encoder_attention_flops(encoder, medium, layer, entering)
    return total


def visual_tokens(shape: ModelShape, plan: Plan, media: Sequence[MediumShape]) -> tuple[int, ...]:
    """Visual tokens of all media, newlines included, that enter each decoder layer.

    Raises:
        PlanError: for a stage in front of an encoder layer that does not exist.
        UnsupportedCombination: for survivors that make no square, and for stages without a budget.
    """
    _check_layers(shape, plan)
    spans = [_span(shape, plan, medium) for medium in media]
    stages = {stage.site.decoder_layer: stage for stage in plan.stages if stage.effect is Effect.DROP}
    counts = []
    for layer in range(shape.decoder.layers):
        if layer in stages:
            spans = [(_kept(_budget(stages[layer]), ranked), fixed) for ranked, fixed in spans]
        counts.append(sum(map(sum, spans)))
    return tuple(counts)


def kept_of_all(shape: ModelShape, budget: Budget, media: Sequence[MediumShape]) -> int:
    """Visual tokens of all media, newlines included, that stay after one decoder stage."""
    return sum(_kept(budget, ranked) + fixed for ranked, fixed in (_span(shape, Plan(), medium) for medium in media))


def _span(shape: ModelShape, plan: Plan, medium: MediumShape) -> tuple[int, int]:
    """Tokens of a medium that leave the encoder: those that a decoder stage ranks, and those that it leaves alone."""
    stages = list(plan.encoder_stages.values())
    if shape.family == _ONEVISION:
        length = medium.encoder_sequences[0] if medium.encoder_sequences else medium.grid_tokens
        for stage in stages:
            length = _kept_patches(shape, stage, medium, length)
        return _onevision(medium, _side(length))
    unit, left = medium.patches_per_token, 0
    for _, height, width in medium.pieces:
        patches = height * width * unit
        for stage in stages:
            patches = _kept_patches(shape, stage, medium, patches)
        left += patches // unit
    return left, len(medium.separators)


def _onevision(medium: MediumShape, side: int) -> tuple[int, int]:
    """The same for LLaVA-OneVision, every crop taken for a grid of side x side."""
    if medium.kind == "video":
        return medium.grid[0] * (-(-side // _FRAME_STRIDE)) ** 2, len(medium.separators)
    if medium.tiles is None or medium.pixels is None:
        return side * side, len(medium.separators)
    down, across = medium.tiles
    height, width = _unpadded(down * side, across * side, *medium.pixels)
    times = math.sqrt(height * width / (_MOST_TILES * side * side))
    if times > 1.1:
        height, width = int(height // times), int(width // times)
    return side * side + height * (width + 1), 0


def _unpadded(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the cells that show the image; the same number is cut away on both sides."""
    if width / height > columns / rows:
        shown = int(height * (columns / width))
        return rows - (rows - shown) // 2 * 2, columns
    shown = int(width * (rows / height))
    return rows, columns - (columns - shown) // 2 * 2


def _side(patches: int) -> int:
    side = math.isqrt(patches)
    if side * side != patches:
        raise UnsupportedCombination(
            f"convention illava-v1: the authors' program lays the survivors of a crop out as a square, {patches} make none: "
            f"keep {side * side} or {(side + 1) ** 2} patches, or count with convention exact"
        )
    return side


def _kept_patches(shape: ModelShape, stage: Stage, medium: MediumShape, patches: int) -> int:
    """Patches of one crop or frame that a merge inside the encoder leaves."""
    budget, unit = _budget(stage), 1 if shape.family == _ONEVISION else medium.patches_per_token
    if budget.ratio is not None and shape.family == "qwen2_vl":
        left = patches - int(float(1 - budget.ratio) * patches) // unit * unit
    elif budget.ratio is not None and shape.family.startswith("qwen3_vl"):
        left = round(float(budget.ratio) * patches) // unit * unit
    else:
        left = budget.resolve(patches) // unit * unit
    return max(left, min(unit, patches))


def _kept(budget: Budget, tokens: int) -> int:
    """Tokens that a stage in front of a decoder layer leaves."""
    if budget.ratio is None:
        return budget.resolve(tokens)
    return max(tokens - round(tokens * (1 - float(budget.ratio))), min(1, tokens))


def _budget(stage: Stage) -> Budget:
    if stage.budget is None:
        raise UnsupportedCombination(f"convention illava-v1 counts stages with keep; {stage.method.name} fixes its own count")
    return stage.budget


def _check_layers(shape: ModelShape, plan: Plan) -> None:
    layers = shape.encoder.layers
    for layer in plan.encoder_stages:
        if layer >= layers:
            raise PlanError(
                f"site=vision, layer={layer}: the encoder has {layers} layers, write a number from 0 to {layers - 1}"
            )
