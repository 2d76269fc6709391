"""What a model looks like in numbers: all that cost arithmetic may know of a model, and the shapes of its media."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from foveate.core.canvas import Canvas


@dataclass(frozen=True)
class MediumShape:
    """One image or one video as the language model sees it.

    Attributes:
        kind: "image" or "video".
        grid: (t, h, w) in visual tokens, raster order: of the whole medium, or of its first part.
        separators: offsets, within the medium's tokens, of tokens off the grids (a CLS token, row newlines). They always stay.
        encoder_tokens: tokens inside the vision encoder (patches and prefix tokens), for all frames together.
        encoder_sequences: lengths of the sequences that attend to each other in a full-attention encoder layer.
        encoder_windows: the same for a windowed layer; empty where the encoder has none.
        crops: grids of the further parts in token order, for images that are cut into crops besides an overview.
        tiles: (down, across), how the tiles of an image lie, where their places are known.
        pixels: (height, width) of the image, where its tiles are known.
        canvases: for each of `pieces` how it is made of rows of the encoder; empty where the encoder has one row for each
            piece, and its patches (or units of them) are the tokens.
    """

    kind: str
    grid: tuple[int, int, int]
    separators: tuple[int, ...] = ()
    encoder_tokens: int = 0
    encoder_sequences: tuple[int, ...] = ()
    encoder_windows: tuple[int, ...] = ()
    crops: tuple[tuple[int, int, int], ...] = ()
    tiles: tuple[int, int] | None = None
    pixels: tuple[int, int] | None = None
    canvases: tuple[Canvas, ...] = ()

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]:
        """The grids of all parts in token order."""
        return (self.grid, *self.crops)

    @property
    def pieces(self) -> tuple[tuple[int, int, int], ...]:
        """The grids cut into single frames, (1, h, w) each: the finest parts that are ranked on their own."""
        return tuple((1, h, w) for t, h, w in self.grids for _ in range(t))

    @property
    def grid_tokens(self) -> int:
        """Visual tokens on the grids: what stages choose from."""
        return sum(t * h * w for t, h, w in self.grids)

    @property
    def encoder_rows(self) -> int:
        """Rows of the encoder's batch, or frames in its packed sequence; some may hold padding alone and make no token."""
        return len(self.encoder_sequences) if self.canvases else len(self.pieces)

    @property
    def patches_per_token(self) -> int:
        """Patches that stay or go together, as the encoder's own merger makes one visual token of them."""
        if self.canvases:
            return 1
        return max(1, self.encoder_tokens // max(1, self.grid_tokens))

    @property
    def tokens(self) -> int:
        """Columns that the medium fills in `input_ids`."""
        return self.grid_tokens + len(self.separators)


@dataclass(frozen=True)
class StateShape:
    """What a decoder layer has instead of attention: linear attention or a short convolution. All counts are for one sequence.

    Attributes:
        weights: weights of the matrix products that every token passes.
        convolution: multiply-adds per token of the convolution.
        recurrence: multiply-adds per token that update and read the state, token after token.
        held: numbers that the state holds in the cache's dtype, however long the sequence.
        held_fp32: numbers that it holds in float32 whatever the dtype.
    """

    weights: int
    convolution: int
    recurrence: int
    held: int
    held_fp32: int


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer, where layers differ.

    Attributes:
        intermediate: width of its MLP; for experts, of all that one token passes together.
        text_intermediate: the same for a text token, where those pass other experts than visual ones.
        projected: K and V projections: 2, 1 where keys serve as values, 0 where the layer reads those of an earlier one.
        other_weights: weights of further matrix products that every token passes (a router, a gate on the attention's output).
        state: what the layer has instead of attention, if it has none; `kv_heads` and `head_dim` then mean nothing.
    """

    kv_heads: int
    head_dim: int
    intermediate: int
    projected: int = 2
    other_weights: int = 0
    state: StateShape | None = None
    text_intermediate: int | None = None


@dataclass(frozen=True)
class DecoderShape:
    """A decoder-only language model.

    Attributes:
        layer_windows: each layer's sliding window in tokens, None for full attention.
        layer_shapes: each layer, where layers differ; the numbers above then are the usual ones.
        last_only: in a prefill that asks for the last logits alone, layers from here on run for the last token alone, as none
            of them makes keys; None where all layers run for all tokens.
        entry_weights: weights of matrix products between the embeddings and layer 0 that every token passes.
        all_logits: whether the model makes logits of every column, though generation asks for the last one's.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated_mlp: bool = True
    layer_windows: tuple[int | None, ...] = ()
    layer_shapes: tuple[LayerShape, ...] = ()
    last_only: int | None = None
    entry_weights: int = 0
    all_logits: bool = False

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens, or None for full attention."""
        return self.layer_windows[layer] if self.layer_windows else None

    def layer(self, layer: int) -> LayerShape:
        """The shape of one layer."""
        return self.layer_shapes[layer] if self.layer_shapes else LayerShape(self.kv_heads, self.head_dim, self.intermediate)


@dataclass(frozen=True)
class EncoderShape:
    """A vision transformer.

    Attributes:
        patch_inputs: numbers in one patch, channels * height * width (* frames): the inputs of the patch embedding.
        windowed_layers: the layers that attend within windows only.
        prefix_tokens: tokens in front of the patches of each sequence (CLS, registers); no patch embedding makes them.
        pooling: tokens that one output averages, where the average is a matrix product over the whole sequence; else 0.
        kv_heads: heads of its keys and values, where there are fewer than `heads`; else 0.
        shrinks_after: the layer behind which every four tokens become one, inside the encoder, of media that have more than
            four patches to a visual token; None where none do.
        shrinking: multiply-adds that make such a token of four.
        relative_positions: whether queries meet vectors for each row and each column of their square of keys (SAM).
        convolved_layers: the layers that convolve their patches and do not attend; their projections are three in, one out.
        convolution: multiply-adds of that convolution for one patch.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    patch_inputs: int
    gated_mlp: bool = False
    windowed_layers: tuple[int, ...] = ()
    prefix_tokens: int = 0
    pooling: int = 0
    kv_heads: int = 0
    relative_positions: bool = False
    shrinks_after: int | None = None
    shrinking: int = 0
    convolved_layers: tuple[int, ...] = ()
    convolution: int = 0

    @property
    def attention_weights(self) -> int:
        """Weights of a layer's four attention projections."""
        return 2 * self.hidden**2 + 2 * self.hidden * (self.hidden // self.heads * (self.kv_heads or self.heads))

    def shrinks(self, layer: int, medium: MediumShape) -> bool:
        """Whether every four tokens of a medium become one behind a layer; a call may ask that all of them stay."""
        return layer == self.shrinks_after and medium.patches_per_token > 4


# Of models that read no pixels.
NO_ENCODER = EncoderShape(layers=0, hidden=0, intermediate=0, heads=0, patch_inputs=0)


class RowsPer(str, Enum):
    """What a matrix product on the way to the decoder has one row for.

    GRID: each visual token on the grid. PATCH: each patch, for a projector that stands before pooling or unpadding.
    ENCODED: each token of the encoder, prefix tokens too. LINE: each line of the grid, for a token that ends it.
    LEFT: each visual token that the encoder's stages left, for a merger that is a part of the encoder.
    """

    GRID = "grid"
    PATCH = "patch"
    ENCODED = "encoded"
    LINE = "line"
    LEFT = "left"


@dataclass(frozen=True)
class LinearShape:
    """One matrix product on the way from the encoder to the decoder.

    `kind` names the kind of medium that passes it, where images and videos take different ways; None for all. `after` is the
    encoder layer whose states a merger reads; None for the last one's.
    """

    inputs: int
    outputs: int
    rows_per: RowsPer = RowsPer.GRID
    kind: str | None = None
    after: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model in numbers; a plain language model has `NO_ENCODER`."""

    family: str
    decoder: DecoderShape
    encoder: EncoderShape
    projector: tuple[LinearShape, ...] = field(default=())
