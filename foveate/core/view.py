"""All that a method may see of a model, and what it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from foveate.errors import MethodError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """Something a method asks the engine to measure. Frozen, so that the engine measures each one once per pass.

    Class attributes:
        attends: whether it is measured from attention, in a decoder layer below the stage.
        encodes: whether it is measured inside the vision encoder, for a stage of the decoder.
        asks: whether it says what is asked about the pictures.
        given: whether it is known before the vision encoder's first layer, for stages inside the encoder.
        what: a few words for it, as `foveate methods` shows them.
        axes: of its tensor, a letter each: groups G, tokens N, heads H, other tokens M, width D.
    """

    attends: ClassVar[bool] = True
    encodes: ClassVar[bool] = False
    asks: ClassVar[bool] = False
    given: ClassVar[bool] = False
    what: ClassVar[str] = "what it asks for"
    axes: ClassVar[str] = "GN"

    @property
    def probed(self) -> Observation:
        """What is measured at the attention of that decoder layer, of all columns."""
        return self


@dataclass(frozen=True)
class AttentionRows(Observation):
    """Attention that visual tokens receive from rater rows, one decoder layer before the cut: [G, H, N], fp32.

    The softmax runs over all keys the rater sees, then the rows of all raters are averaged; heads stay apart.

    Attributes:
        query: "last" the last prompt token (FastV's code), "text" the instruction after the last medium,
            "all" every token that is not padding (FastV's paper, Sec. 4.1), "window:w" the last w tokens, or "matched":
            those of "text" that match the sample's visual tokens better than its text does on average (SparseVLM's raters).
            The match of a text token is the mean, over the visual tokens as they enter the decoder, of the softmax over the
            text of their dot products. A sample whose text matches evenly is rated by all of it.
        rope: False scores with the queries and keys before their rotary embedding (FEATHER, arXiv 2412.13180).
    """

    query: str = "last"
    rope: bool = True

    axes = "GHN"
    what = "attention in the language model"


@dataclass(frozen=True)
class Importance(Observation):
    """How much attention each token receives where the stage acts: [G, N], fp32, a mean over heads.

    In the decoder from the raters of `AttentionRows`; in the vision encoder from all queries of the token's own sequence, in
    the layer below the cut (a mean over the columns of its attention, iLLaVA's s_j).

    Attributes:
        query, rope: as of `AttentionRows`; the encoder does not read them.
    """

    query: str = "last"
    rope: bool = True

    what = "attention where it acts"

    @property
    def probed(self) -> AttentionRows:
        return AttentionRows(self.query, self.rope)


@dataclass(frozen=True)
class KeyNorms(Observation):
    """How large the keys of each token are in the decoder layer below the cut: [G, N], fp32, the sum of absolute values.

    Over all heads, before their rotary embedding: a sum of absolute values after it would change with padding.
    """

    what = "the size of keys in the language model"


@dataclass(frozen=True)
class TextPivots(Observation):
    """States of the text tokens with the largest keys, as they enter the layer of the stage: [G, M, D], fp32.

    Of the prompt of the group's sample, whose first token is none of them; where it has fewer tokens, the last rows are zero.

    Attributes:
        count: M.
    """

    count: int = 4

    axes = "GMD"
    what = "the text's largest keys"

    @property
    def probed(self) -> KeyNorms:
        return KeyNorms()


@dataclass(frozen=True)
class Change(Observation):
    """How far the state of each token moved in the decoder layer below the cut: [G, N], fp32, the Euclidean length."""

    attends = False
    what = "how far states move in a layer"


@dataclass(frozen=True)
class Question(Observation):
    """What is asked about the tokens of each group: [G, D], fp32, the mean input embedding of its question.

    The question is the text of `AttentionRows(query="text")`: the instruction after the last medium, of the prompt alone and
    never of an answer. Measured in front of the language model (site=pre_llm).
    """

    axes = "GD"
    attends = False
    asks = True
    what = "the question"


@dataclass(frozen=True)
class QuestionTokens(Observation):
    """What is asked, word by word: [G, M, D], fp32, the input embeddings of the tokens of which `Question` is the mean.

    M is the longest question's; rows behind the end of a shorter one are zero. Measured where `Question` is.
    """

    axes = "GMD"
    attends = False
    asks = True
    what = "the words of the question"


@dataclass(frozen=True)
class EncoderAttention(Observation):
    """How much attention each visual token received inside the vision encoder: [G, N], fp32, a mean over heads.

    From the class token where the encoder has one, else from all patches of the token's own picture, crop or frame (a mean over
    the columns of its attention). A visual token that is made of several patches has their mean. Serves stages of the decoder.

    Attributes:
        depth: in which layer, as a share of those that the features pass: 1 is the last of them, .5 the one in the middle. Of
            an encoder with windowed layers, the last full one up to there.
        rows: "class" as said above; "all" for a mean over columns in any encoder.
    """

    depth: float = 1.0
    rows: str = "class"

    attends = False
    encodes = True
    what = "attention in the vision encoder"


@dataclass(frozen=True)
class EncoderKeys(Observation):
    """The keys of each visual token inside the vision encoder: [G, N, D], fp32, a mean over heads.

    As attention takes them, so rotated where the encoder rotates; a mean over the token's patches.

    Attributes:
        depth: as of `EncoderAttention`.
    """

    depth: float = 1.0

    axes = "GND"
    attends = False
    encodes = True
    what = "keys in the vision encoder"


@dataclass(frozen=True)
class Pixels(Observation):
    """The pixel values of each visual token as the vision encoder is handed them: [G, N, D], fp32, D values of its patches.

    For stages inside encoders that take all pictures as one row of patches.
    """

    axes = "GND"
    attends = False
    given = True
    what = "pixels"


@dataclass(frozen=True)
class TokenView:
    """Equal-length groups of visual tokens. Never padding, batch rows, sequence positions or modules of the model.

    Attributes:
        features: [G, N, D] hidden states, any float dtype; read only.
        coords: [G, N, 3] long, (t, y, x) of each token on its medium's grid.
        grid: (t, h, w) if the N tokens are a whole grid in raster order, else None.
        sizes: [G, N] fp32, how many original tokens each token stands for.
        group_keys: one stable number per group, so that seeded methods give a row the same draw alone and in company.
        predictor: of a learned method.
        asks: for each group whether its last token asks for the answer and stays in any case; () where none does.
    """

    features: Tensor
    coords: Tensor
    grid: tuple[int, int, int] | None
    sizes: Tensor
    group_keys: tuple[int, ...]
    observed: Mapping[Observation, Tensor] = field(default_factory=dict)
    predictor: Callable[..., Tensor] | None = None
    asks: tuple[bool, ...] = ()

    @property
    def module(self) -> Callable[..., Tensor]:
        """The module that a learned method's `build()` returned."""
        return _built(self.predictor)

    @property
    def group_count(self) -> int:
        """G."""
        return self.features.shape[0]

    @property
    def token_count(self) -> int:
        """N."""
        return self.features.shape[1]

    def observe(self, observation: Observation) -> Tensor:
        """Return what the method asked for in `needs()`."""
        if observation not in self.observed:
            raise MethodError(f"{observation} was not asked for: add it to what needs() returns")
        return self.observed[observation]


@dataclass(frozen=True)
class StepView:
    """Generated tokens as they enter the layer of a step stage. Each is judged on its own, from its own state alone.

    A decode step shows one token of each row; where a whole answer is read at once it shows all of them.

    Attributes:
        features: [B, n, D] hidden states, any float dtype; read only.
        number: [B, n] long, which token of its answer each one is, from 0; negative for a token that is none.
        predictor: of a learned method.
    """

    features: Tensor
    number: Tensor
    predictor: Callable[[Tensor], Tensor] | None = None

    @property
    def module(self) -> Callable[[Tensor], Tensor]:
        """The module that a learned method's `build()` returned."""
        return _built(self.predictor)


def _built(module: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    if module is None:
        raise MethodError("only a learned method has a module: derive it from LearnedMethod")
    return module
