"""FLOPs of each part of a vision-language model, exact per architecture: 2 x MAC of every matrix product and convolution.

Norms, activations, softmax, rotary embeddings and element-wise sums are not counted, as torch's FlopCounterMode does not
count them either. Layers without attention are counted as their recurrence runs, token after token; kernels that work in
chunks execute more. Every number is for one sample. Attention is what eager attention executes: the whole square of queries
times keys, masked afterwards. That holds for causal masks and for sliding layers too: their prefill under eager multiplies
all n queries with all n keys. Kernels that skip masked blocks (flash, flex) execute less.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from foveate.core.learned import LearnedMethod
from foveate.core.method import Method
from foveate.core.plan import Effect, Plan
from foveate.core.shape import DecoderShape, EncoderShape, LinearShape, MediumShape, ModelShape, RowsPer
from foveate.core.site import Point
from foveate.core.view import AttentionRows, Importance
from foveate.cost.tokens import encoder_sequences_per_layer, judged_groups
from foveate.errors import InputError

_PLAIN = Plan()


def matmul_flops(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of [rows, inputs] @ [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def attention_flops(width: int, queries: int, keys: int) -> int:
    """FLOPs of Q K^T and P V for `queries` x `keys` pairs; `width` is heads * head_dim, as grouped keys are repeated first."""
    return 2 * matmul_flops(queries, width, keys)


def decoder_token_flops(decoder: DecoderShape, tokens: int, layer: int = 0, text: int = 0) -> int:
    """FLOPs of one decoder layer that grow with its tokens alone: q, k, v and o projections (GQA), MLP or experts, router.

    `text` says how many of the tokens are text, for layers whose experts are others for those.
    """
    shape = decoder.layer(layer)
    width, kv_width = decoder.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = matmul_flops(tokens, decoder.hidden, 2 * width + shape.projected * kv_width)
    if shape.state is not None:
        projections = matmul_flops(tokens, 1, shape.state.weights + shape.state.convolution + shape.state.recurrence)
    matrices = 3 if decoder.gated_mlp else 2
    mlp = matrices * matmul_flops(tokens, decoder.hidden, shape.intermediate)
    if shape.text_intermediate is not None:
        mlp += matrices * matmul_flops(text, decoder.hidden, shape.text_intermediate - shape.intermediate)
    return projections + mlp + matmul_flops(tokens, 1, shape.other_weights)


def decoder_layer_flops(decoder: DecoderShape, tokens: int, layer: int = 0, text: int = 0) -> int:
    """FLOPs of one decoder layer in prefill over `tokens` tokens; attention is the full square, also for sliding layers."""
    alone = decoder.last_only is not None and layer >= decoder.last_only
    queries = 1 if alone else tokens
    return decoder_token_flops(decoder, queries, layer, min(text, queries)) + attention_flops(
        _width(decoder, layer), queries, tokens
    )


def _width(decoder: DecoderShape, layer: int) -> int:
    """Heads times their width; 0 for a layer that does not attend."""
    shape = decoder.layer(layer)
    return 0 if shape.state is not None else decoder.heads * shape.head_dim


def lm_head_flops(decoder: DecoderShape, columns: int = 1) -> int:
    """FLOPs of the logits of one position, as many as generation asks for per pass; of all columns where the model makes them.

    Tokens that are gone have a column there too: their states are zeros.
    """
    return matmul_flops(columns if decoder.all_logits else 1, decoder.hidden, decoder.vocabulary)


def decoder_prefill_flops(decoder: DecoderShape, tokens_per_layer: Sequence[int], text: int = 0) -> int:
    """FLOPs of all decoder layers in prefill, layer i over `tokens_per_layer[i]` tokens, without the LM head.

    `text` of the tokens of each layer are text.
    """
    entry = matmul_flops(tokens_per_layer[0], 1, decoder.entry_weights)
    return entry + sum(decoder_layer_flops(decoder, tokens, layer, text) for layer, tokens in enumerate(tokens_per_layer))


def decode_flops(decoder: DecoderShape, cached_per_layer: Sequence[int], steps: int, plan: Plan = _PLAIN) -> int:
    """FLOPs of `steps` decode steps over a KV cache that holds `cached_per_layer[i]` tokens of layer i when they begin.

    Each step: projections and MLP for one token in each layer, attention over the layer's cache including the token itself
    (a sliding layer sees at most its window), and the LM head once. After a gate the cache grows by the share that it stores;
    its window of recent tokens is left out, and a sliding layer is counted as without a gate.
    """
    attention = sum(
        attention_flops(_width(decoder, layer), 1, _attended(cached, steps, decoder.window(layer), plan.stored_share(layer)))
        for layer, cached in enumerate(cached_per_layer)
    )
    layers = sum(decoder_token_flops(decoder, 1, layer, text=1) for layer in range(len(cached_per_layer)))
    per_step = matmul_flops(1, 1, decoder.entry_weights) + layers + lm_head_flops(decoder)
    return steps * per_step + attention


def _attended(cached: int, steps: int, window: int | None, share: float) -> int:
    """Keys that `steps` queries see together: cached + 1, then one more for each stored token, or each one up to a window."""
    if window is None:
        return steps * (cached + 1) + round(share * (steps * (steps - 1) // 2))
    growing = min(max(window - cached, 0), steps)
    return growing * cached + growing * (growing + 1) // 2 + (steps - growing) * window


def encoder_flops(encoder: EncoderShape, medium: MediumShape, plan: Plan = _PLAIN) -> int:
    """FLOPs of the vision encoder for one medium: patch embedding, then every layer over all encoder tokens.

    Full layers attend within `encoder_sequences` (all encoder tokens as one sequence if none are given), windowed layers
    within `encoder_windows`: one square per segment, as packed eager attention runs them. All layers count, also those
    after the feature layer that a projector reads, because Hugging Face models run them. A stage inside the encoder shortens
    the sequences of its layer and of later ones; windows are taken to shrink in proportion, though each loses its own.

    Raises:
        InputError: if the encoder has windowed layers and the medium does not say its windows.
    """
    tokens = medium.encoder_tokens
    if not tokens:
        return 0
    matrices = 3 if encoder.gated_mlp else 2
    attention, mlp = encoder.attention_weights, matrices * encoder.hidden * encoder.intermediate
    total = matmul_flops(patch_count(encoder, medium), encoder.patch_inputs, encoder.hidden)
    by_layer = encoder_sequences_per_layer(plan, encoder, medium)
    for layer, lengths in enumerate(by_layer):
        own = sum(lengths)
        above = plan.encoder_stages.get(layer + 1)
        halfway = above is not None and above.site.point is Point.MID  # this layer's MLP sees what is left for the next one
        # Windows at the border may be filled up to their full size.
        within = Fraction(sum(medium.encoder_windows) * own, tokens) if layer in encoder.windowed_layers else own
        convolves = layer in encoder.convolved_layers
        total += matmul_flops(round(within), 1, 4 * encoder.hidden**2 if convolves else attention)
        total += matmul_flops(sum(by_layer[layer + 1]) if halfway else own, 1, mlp)
        total += encoder_attention_flops(encoder, medium, layer, lengths)
        if encoder.shrinks(layer, medium):
            total += matmul_flops(sum(length // 4 for length in lengths), 1, encoder.shrinking)
    return total + _pooling(encoder, medium.encoder_sequences or (tokens,))


def encoder_attention_flops(encoder: EncoderShape, medium: MediumShape, layer: int, lengths: Sequence[int]) -> int:
    """FLOPs of Q K^T and P V of one encoder layer whose sequences are `lengths` long, or of its convolution.

    Raises:
        InputError: if the encoder has windowed layers and the medium does not say its windows.
    """
    if encoder.windowed_layers and not medium.encoder_windows:
        raise InputError(f"this encoder has windowed layers, but the {medium.kind} does not give encoder_windows")
    if layer in encoder.convolved_layers:
        return matmul_flops(sum(lengths), 1, encoder.convolution)
    if layer in encoder.windowed_layers:
        share = Fraction(sum(lengths), medium.encoder_tokens)
        return round(_squares(encoder, medium.encoder_windows) * share**2)
    return _squares(encoder, lengths)


def _pooling(encoder: EncoderShape, lengths: Sequence[int]) -> int:
    if not encoder.pooling:
        return 0
    return sum(matmul_flops(length // encoder.pooling, length, encoder.hidden) for length in lengths)


def _squares(encoder: EncoderShape, lengths: Sequence[int]) -> int:
    total = sum(attention_flops(encoder.hidden, length, length) for length in lengths)
    if encoder.relative_positions:
        total += sum(matmul_flops(length, encoder.hidden, 2 * isqrt(length)) for length in lengths)
    return total


def patch_count(encoder: EncoderShape, medium: MediumShape) -> int:
    """Patches of one medium: its encoder tokens without the prefix tokens of each sequence."""
    return medium.encoder_tokens - encoder.prefix_tokens * len(medium.encoder_sequences or (medium.encoder_tokens,))


def projector_flops(shape: ModelShape, medium: MediumShape, plan: Plan = _PLAIN) -> int:
    """FLOPs of the matrix products between encoder and decoder (projector, merger) for one medium."""
    passed = [linear for linear in shape.projector if linear.kind in (None, medium.kind)]
    return sum(matmul_flops(_rows(shape.encoder, linear, medium, plan), linear.inputs, linear.outputs) for linear in passed)


def _rows(encoder: EncoderShape, linear: LinearShape, medium: MediumShape, plan: Plan) -> int:
    if linear.rows_per is RowsPer.LEFT:
        return sum(plan.leave_encoder(h * w, medium.patches_per_token, linear.after) for _, h, w in medium.pieces)
    if linear.rows_per is RowsPer.GRID:
        return medium.grid_tokens
    if linear.rows_per is RowsPer.LINE:
        return sum(t * h for t, h, _ in medium.grids)
    return medium.encoder_tokens if linear.rows_per is RowsPer.ENCODED else patch_count(encoder, medium)


def vision_flops(shape: ModelShape, media: Sequence[MediumShape], plan: Plan = _PLAIN) -> int:
    """FLOPs of encoder and projector for all media of one sample; 0 for a medium whose `encoder_tokens` are not given.

    A projector behind the encoder runs for every visual token under every plan: those that are gone pass it as zeros. A merger
    within it runs for those that are left.
    """
    return sum(
        encoder_flops(shape.encoder, medium, plan) + projector_flops(shape, medium, plan)
        for medium in media
        if medium.encoder_tokens
    )


def encoder_selection_flops(shape: ModelShape, media: Sequence[MediumShape], plan: Plan) -> int:
    """FLOPs of the attention that encoder stages compute again to score their tokens: all queries times all keys."""
    encoder, total = shape.encoder, 0
    for layer, stage in plan.encoder_stages.items():
        if any(isinstance(need, Importance) for need in stage.method.needs()):
            for medium in media:
                lengths = encoder_sequences_per_layer(plan, encoder, medium)[layer - 1]
                total += sum(matmul_flops(length, encoder.hidden, length) for length in lengths)
    return total


def judging_flops(plan: Plan, media: Sequence[MediumShape]) -> int:
    """FLOPs of trained modules that judge the tokens of one sample in prefill. What they cost in decoding is not counted."""
    learned = [(stage, stage.method) for stage in plan.stages if isinstance(stage.method, LearnedMethod)]
    return sum(
        method.judging_flops(count)
        for stage, method in learned
        if stage.site.decoder_layer is not None
        for count in judged_groups(plan, media, stage)
    )


def selection_flops(decoder: DecoderShape, plan: Plan, tokens_per_layer: Sequence[int], text_tokens: int) -> int:
    """FLOPs that the plan's own choices cost in prefill: the attention rows that its methods ask for.

    A row is heads * head_dim * n MACs, n = tokens of the layer before the cut; fused kernels do not hand rows out, so they
    are computed again. query="last" is one row; "text" and "matched" count a row for every text token, an upper bound. A
    stage that drops nothing chooses nothing. Other work of a method (top-k, distances between tokens) is not counted.

    Args:
        tokens_per_layer: tokens of all kinds that enter each decoder layer under the plan.
    """
    total = 0
    for stage in plan.stages:
        layer = stage.site.decoder_layer
        if not layer:  # before layer 0 no attention exists
            continue
        before = tokens_per_layer[layer - 1]
        if stage.effect is Effect.DROP and tokens_per_layer[layer] == before:
            continue
        rows = _rater_rows(stage.method, before, text_tokens)
        attending = [at for at in range(layer) if decoder.window(at) is None and decoder.layer(at).state is None]
        observed = max(attending, default=layer - 1)
        total += matmul_flops(rows, _width(decoder, observed), before)
    return total


def _rater_rows(method: Method, tokens: int, text_tokens: int) -> int:
    """Attention rows that a method asks for in prefill."""
    rows = 0
    for query in [need.query for need in method.needs() if isinstance(need, AttentionRows | Importance)]:
        if query.startswith("window:"):
            rows += min(int(query.removeprefix("window:")), tokens)
        else:
            rows += {"last": 1, "text": text_tokens, "matched": text_tokens, "all": tokens}[query]
    return rows
