"""What a family file says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.encoder import EncoderPath, PackedPath
from foveate.core.shape import DecoderShape, EncoderShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError, UnsupportedCombination

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor, nn

_NO_ENCODER = "no stage acts inside this encoder in this version"
NO_PIXELS = "stages act on patches; pixelprune(site=vision, layer=0) looks at their pixels"

# Sizes that the tiny configs share: a text model and a vision transformer of a few ten thousand weights.
TINY_TEXT: Mapping[str, Any] = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
# What text configs call layers that carry a state from token to token instead of attending.
_STATEFUL = ("linear_attention", "conv")
TINY_VISION: Mapping[str, Any] = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, image_size=24, patch_size=4)


@dataclass(frozen=True)
class TinyMedium:
    """One random image or video for a model of `tiny_config`, as the family's processor would hand it over.

    Attributes:
        kind: "image" or "video".
        ids: [n] long, the columns it takes in the prompt: placeholders and what the family writes between them.
        inputs: tensors of this medium by the name of the model's argument; those of several media are concatenated.
    """

    kind: str
    ids: Tensor
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class StackedFeatures:
    """Features of visual tokens that a decoder adds to its states after each of its first layers (DeepStack).

    Attributes:
        features: the decoder's argument that holds them, a list with one [N, D] for each of these layers.
        columns: the decoder's argument that marks their columns, [B, S] bool.
        layers: how many layers have some.
    """

    features: str
    columns: str
    layers: int


class Family(ABC):
    """A model family. Paths are dotted, from the top model; they are resolved when a plan is attached.

    Class attributes:
        model_types: `config.model_type` values of the family.
        title: the family's name as people write it.
        base: the module that merges text and media and calls the decoder.
        decoder: the language model without its head; `decoder + ".layers"` are its layers.
        attention: the attention module within a decoder layer.
        placeholders: config attribute with the placeholder id of each kind of medium.
        host_inputs: small integer tensors among a call's inputs that `media` reads; the engine brings them to the CPU.
        unsupported: for each site the family cannot serve, the reason in words.
        bidirectional: whether tokens of a picture (or of a prefix) see each other in both directions in the decoder.
        token_inputs: arguments of a decoder layer with an entry for each token [B, S, ...], besides states, positions and mask.
        notes: what is special, one line for the capability table.
        beams: whether transformers can run the plain model with beams; it repeats prompts, but not everybody's pixels.
        auto_class: the class of transformers that loads such a model.
        same_when_static: whether transformers gives the plain model the same masks for a static cache as for a growing one.
        anchor: whether tests try everything on it, not only every two things together; no family inherits this.
        broken_in: versions (major, minor) of transformers whose own code fails on the plain model, each with what fails.
        since: the first version (major, minor) of transformers whose model lies at these paths; earlier ones know its type too.
    """

    model_types: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    base: ClassVar[str] = "model"
    decoder: ClassVar[str] = "model.language_model"
    attention: ClassVar[str] = "self_attn"
    placeholders: ClassVar[Mapping[str, str]] = {"image": "image_token_id"}
    host_inputs: ClassVar[tuple[str, ...]] = ()
    unsupported: ClassVar[Mapping[SiteKind, str]] = {SiteKind.PIXELS: NO_PIXELS, SiteKind.VISION_LAYER: _NO_ENCODER}
    bidirectional: ClassVar[bool] = False
    token_inputs: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[str] = ""
    beams: ClassVar[bool] = True
    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    same_when_static: ClassVar[bool] = True
    anchor: ClassVar[bool] = False
    broken_in: ClassVar[Mapping[tuple[int, int], str]] = {}
    since: ClassVar[tuple[int, int]] = (5, 0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.anchor = vars(cls).get("anchor", False)

    @property
    def is_text_only(self) -> bool:
        """Whether no prompt of the family holds a picture."""
        return not self.placeholders

    def covers(self, config: Any) -> bool:
        """Whether this file describes a config; families that share a model type tell their configs apart here."""
        return getattr(config, "model_type", None) in self.model_types

    def check(self, config: Any) -> None:  # noqa: B027 - most families cover every config of their type
        """Raise UnsupportedModel for a config of this model type that the family file does not cover."""

    def placeholder_ids(self, config: Any) -> dict[str, int]:
        """The placeholder token id of each kind of medium."""
        return {kind: getattr(config, attribute) for kind, attribute in self.placeholders.items()}

    @abstractmethod
    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        """Shapes of the media of a call, by the kind of placeholder they fill, in the order of `input_ids`.

        Args:
            config: the model's config.
            inputs: keyword arguments of forward or generate; `input_ids` without the columns that an earlier turn cached.
            columns: number of placeholder columns of each kind in the call.
        """

    @abstractmethod
    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        """Shapes of images of these (width, height) in pixels after the family's default preprocessing."""

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        """Shape of a video of `frames` frames of this (width, height) in pixels, after default preprocessing."""
        raise UnsupportedCombination(f"{self.title} takes no video")

    @abstractmethod
    def model_shape(self, config: Any) -> ModelShape:
        """The model in numbers."""

    @abstractmethod
    def tiny_config(self) -> Any:
        """A random-weight config of the family, < 200k parameters, for tests that must not download anything."""

    @abstractmethod
    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        """A random image or video for a model of `tiny_config`. Where sizes may differ, `number` picks one of several."""

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        """What goes with the prompts `ids` [B, S] that hold these media in row order: their tensors and side inputs."""
        import torch

        names = dict.fromkeys(name for medium in media for name in medium.inputs)
        return {name: torch.cat([medium.inputs[name] for medium in media if name in medium.inputs]) for name in names}

    def mend(self, model: nn.Module) -> None:  # noqa: B027 - transformers runs most models in every mode
        """Repair, on a model of `tiny_config` only, what checks cannot do with: a mode that fails, features that drown."""

    def tiny_inputs(self, config: Any) -> dict[str, Tensor]:
        """Inputs for a model of `tiny_config`: one picture, five text tokens on either side."""
        import torch

        medium = self.tiny_medium(config, "image", 0, torch.Generator().manual_seed(0))
        ids = torch.cat([torch.arange(3, 8), medium.ids, torch.arange(8, 13)])[None]
        return {"input_ids": ids, **self.tiny_batch(config, ids, [medium])}

    def stacked_features(self, config: Any) -> StackedFeatures | None:
        """What the decoder adds to visual tokens between its first layers, if anything."""
        return None

    def encoder(self, config: Any) -> EncoderPath | PackedPath | None:
        """Where the vision encoder keeps its tokens; None if no stage can act inside it."""
        return None

    def shared_keys(self, config: Any) -> Mapping[int, int]:
        """For each decoder layer without keys and values of its own the layer whose keys and values it reads."""
        return {}

    def refuse_layer(self, config: Any, layer: int) -> str | None:
        """Why no stage can stand in front of a decoder layer that exists, in words; None if one can."""
        return None

    def refuse_length(self, config: Any, columns: int) -> str | None:
        """Why tokens cannot be dropped from so long a prompt, in words; None if they can."""
        return None

    def decoder_windows(self, config: Any) -> tuple[int | None, ...]:
        """The sliding window of each decoder layer in tokens, None for full attention and for layers without any."""
        text = config.get_text_config()
        types = getattr(text, "layer_types", None)
        if not types:  # Mistral and others have one kind of layer, and say so by the window alone
            kind = "full_attention" if getattr(text, "sliding_window", None) is None else "sliding_attention"
            types = [kind] * text.num_hidden_layers
        return tuple(text.sliding_window if kind == "sliding_attention" else None for kind in types)

    def stateful_layers(self, config: Any) -> frozenset[int]:
        """Decoder layers without attention: linear attention or a short convolution. They keep a state, and no slots."""
        types = getattr(config.get_text_config(), "layer_types", None) or ()
        return frozenset(layer for layer, kind in enumerate(types) if kind in _STATEFUL)

    def full_layers(self, config: Any) -> tuple[int, ...]:
        """Decoder layers that attend to the whole prompt: those whose attention can rank tokens."""
        windows, stateful = self.decoder_windows(config), self.stateful_layers(config)
        return tuple(layer for layer, window in enumerate(windows) if window is None and layer not in stateful)

    def rotates(self, config: Any, layer: int) -> bool:
        """Whether a decoder layer rotates its queries and keys by their positions."""
        return True

    def decoder_shape(self, config: Any) -> DecoderShape:
        """The decoder in numbers, from the attribute names that current text configs share."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return DecoderShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", 0),  # with experts everywhere the family says it itself
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
            layer_windows=self.decoder_windows(config),
        )

    def encoder_shape(self, config: Any, prefix_tokens: int = 0, gated_mlp: bool = False) -> EncoderShape:
        """A CLIP, SigLIP or similar encoder in numbers, from the attribute names that vision configs share."""
        vision = config.vision_config
        sides = vision.patch_size if isinstance(vision.patch_size, (tuple, list)) else [vision.patch_size] * 2
        return EncoderShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_attention_heads,
            patch_inputs=getattr(vision, "num_channels", 3) * sides[0] * sides[1],
            gated_mlp=gated_mlp,
            prefix_tokens=prefix_tokens,
        )


def used_layers(layers: int, feature_layer: int | Sequence[int]) -> int:
    """How many encoder layers features pass. Hidden state 0 is what enters layer 0, and -1 is what leaves the last layer."""
    chosen = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    return max(at if at >= 0 else layers + 1 + at for at in chosen)


class FixedGridFamily(Family):
    """A family whose encoder gives every image (or crop) the same grid, so that counts follow from the config alone."""

    @abstractmethod
    def image(self, config: Any) -> MediumShape:
        """The shape of any image."""

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        shape = self.image(config)
        count, rest = divmod(columns["image"], shape.tokens)
        if rest:
            raise InputError(
                f"{columns['image']} image placeholder tokens are no multiple of the {shape.tokens} that one image fills; "
                "let the model's own processor expand the prompt"
            )
        pixels = inputs.get("pixel_values")
        if pixels is not None and len(pixels) != count:
            raise InputError(f"the prompt has placeholders for {count} images, but pixel values for {len(pixels)} are given")
        return {"image": [shape] * count}

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return [self.image(config)] * len(sizes)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        side = config.vision_config.image_size
        ids = torch.full((self.image(config).tokens,), self.placeholder_ids(config)[kind])
        return TinyMedium(kind, ids, {"pixel_values": torch.randn(1, 3, side, side, generator=random)})
