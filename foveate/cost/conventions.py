"""Ways of counting: what the hardware is asked to do, and what papers printed instead.

A paper's table only reproduces with the paper's own formula, so each formula is here under a name, with a sentence that says
what it counts. KV bytes are no matter of convention: they are those of the whole tokens that the engine keeps (kv_bytes.py),
or of those that a paper's program keeps where the convention counts that program (`TokenRule`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from foveate.core.budget import Budget
from foveate.core.plan import Plan
from foveate.core.shape import DecoderShape, MediumShape, ModelShape
from foveate.cost import illava_v1
from foveate.cost.flops import decode_flops, decoder_prefill_flops, lm_head_flops, vision_flops
from foveate.cost.tokens import stored_answer_tokens
from foveate.errors import UnknownName, did_you_mean


@dataclass(frozen=True)
class Workload:
    """One sample as a convention sees it.

    Attributes:
        media: images and videos, for the encoder.
        visual_tokens: visual tokens that enter each decoder layer; whole numbers unless the convention counts fractions.
        text_tokens: all other tokens of the prompt.
        new_tokens: tokens to generate.
        plan: the plan, for its stages inside the encoder.
    """

    media: tuple[MediumShape, ...]
    visual_tokens: tuple[float, ...]
    text_tokens: int
    new_tokens: int
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True)
class Counts:
    """What a convention counts for one sample, in its unit. None: the convention leaves it out."""

    llm_prefill: float
    encoder: float | None = None
    decode: float | None = None

    @property
    def prefill(self) -> float:
        """Encoder, projector and decoder together, as far as the convention counts them."""
        return self.llm_prefill + (self.encoder or 0)


@dataclass(frozen=True)
class TokenRule:
    """How many tokens a paper's own program works on, where that is not what the engine does.

    Attributes:
        visual: visual tokens that enter each decoder layer.
        encoder: lengths of the sequences of one medium that enter each encoder layer.
        kept: visual tokens of all media that stay under one budget.
    """

    visual: Callable[[ModelShape, Plan, Sequence[MediumShape]], tuple[int, ...]]
    encoder: Callable[[ModelShape, Plan, MediumShape], list[tuple[int, ...]]]
    kept: Callable[[ModelShape, Budget, Sequence[MediumShape]], int]


@dataclass(frozen=True)
class Convention:
    """A named way of counting.

    Attributes:
        words: what is counted and what is not, for people.
        unit: of every count that is not bytes or tokens.
        rounds: whether a budget gives whole tokens, as in the engine, or fractions, as in a formula.
        program: the tokens of the paper's program, for a convention that follows one; None for those of the engine.
    """

    name: str
    words: str
    unit: str
    rounds: bool
    count: Callable[[ModelShape, Workload], Counts]
    program: TokenRule | None = None


def fastv_layer_macs(decoder: DecoderShape, tokens: float) -> float:
    """C(n) = 4 n d^2 + 2 n^2 d + 2 n d m MACs of one layer at n tokens. Source: FastV, arXiv:2403.06764, for Eq. 5."""
    n, d, m = tokens, decoder.hidden, decoder.intermediate
    return 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m


def dynamic_llava_layer_flops(decoder: DecoderShape, tokens: float) -> float:
    """32 N C^2 + 4 N^2 C FLOPs of one layer at N tokens. Source: Dynamic-LLaVA, arXiv:2412.00876, Eq. 13."""
    n, c = tokens, decoder.hidden
    return 32 * n * c**2 + 4 * n**2 * c


def _exact(shape: ModelShape, work: Workload) -> Counts:
    decoder = shape.decoder
    tokens = [work.text_tokens + int(visual) for visual in work.visual_tokens]
    columns = work.text_tokens + (sum(medium.tokens for medium in work.media) or int(max(work.visual_tokens, default=0)))
    # The prefill's own logits give the first new token.
    steps = max(work.new_tokens - 1, 0)
    return Counts(
        llm_prefill=decoder_prefill_flops(decoder, tokens, work.text_tokens) + lm_head_flops(decoder, columns),
        encoder=vision_flops(shape, work.media, work.plan),
        decode=decode_flops(decoder, tokens, steps, work.plan),
    )


def _fastv(shape: ModelShape, work: Workload) -> Counts:
    layers = [fastv_layer_macs(shape.decoder, work.text_tokens + visual) for visual in work.visual_tokens]
    return Counts(llm_prefill=sum(layers) / len(layers))


def _dynamic_llava(shape: ModelShape, work: Workload) -> Counts:
    decoder = shape.decoder
    return Counts(
        llm_prefill=sum(dynamic_llava_layer_flops(decoder, visual) for visual in work.visual_tokens),
        decode=sum(
            dynamic_llava_layer_flops(decoder, count)
            for count in stored_answer_tokens(work.plan, work.new_tokens, decoder.layers)
        ),
    )


def _illava_v1(shape: ModelShape, work: Workload) -> Counts:
    tokens = [work.text_tokens + int(visual) for visual in work.visual_tokens]
    return Counts(
        llm_prefill=decoder_prefill_flops(shape.decoder, tokens),
        encoder=sum(illava_v1.encoder_flops(shape, work.plan, medium) for medium in work.media),
    )


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "exact",
            "FLOPs = 2 x MAC of every matrix product and convolution as eager attention executes them: vision encoder, "
            "projector, decoder with its grouped keys and its own MLP, one LM head position per pass; new_tokens - 1 decode "
            "steps over the KV cache; softmax, norms and the choice of tokens are left out",
            "FLOPs",
            True,
            _exact,
        ),
        Convention(
            "fastv",
            "MACs of 4nd^2 + 2n^2d + 2ndm averaged over the decoder layers, n = text tokens (36 in the paper's tables) plus "
            "visual tokens, which may be fractions; an MLP of two matrices; no vision encoder, no LM head, no decoding",
            "MACs, mean of the decoder layers",
            False,
            _fastv,
        ),
        Convention(
            "dynamic-llava",
            "FLOPs of L(32NC^2 + 4N^2C), N = visual tokens only, with a gated MLP taken as 4C wide; decoding is one pass "
            "without KV cache over the new tokens; no text, no vision encoder, no LM head",
            "FLOPs",
            True,
            _dynamic_llava,
        ),
        Convention(
            "illava-v1",
            "FLOPs = 2 x MAC of the blocks of encoder and decoder in the authors' program of January 2025: a merge stands "
            "between a block's attention and its MLP; LLaVA-OneVision's survivors of a crop count as a square grid; a "
            "stage of the LLM removes round(n (1 - keep)) tokens, row newlines among them; no patch embedding, projector, LM "
            "head or decoding",
            "FLOPs",
            True,
            _illava_v1,
            TokenRule(illava_v1.visual_tokens, illava_v1.encoder_sequences, illava_v1.kept_of_all),
        ),
    )
}


def convention_named(name: str) -> Convention:
    """Return a convention by its name.

    Raises:
        UnknownName: for a name that is not in `CONVENTIONS`.
    """
    if name not in CONVENTIONS:
        raise UnknownName(f"unknown convention {name!r}.{did_you_mean(name, CONVENTIONS)}")
    return CONVENTIONS[name]
