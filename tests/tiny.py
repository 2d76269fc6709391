"""Tiny random models of every family and inputs for them: ragged batches, several images, both paddings. No downloads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from foveate import families
from foveate.core.encoder import PackedPath
from foveate.errors import FoveateError
from foveate.families import TinyMedium

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])


@cache
def probed(family: str) -> Any:
    """The config of a family's tiny model, made once, to be looked at; models get one of their own."""
    return families.get(family).tiny_config()


def _runs(name: str) -> bool:
    family = families.get(name)
    return family.model_types[0] in CONFIG_MAPPING and VERSION not in family.broken_in and family.since <= VERSION


# Those that read pictures, and that this transformers has and can run.
ALL_FAMILIES = tuple(name for name in families.names() if _runs(name) and not families.get(name).is_text_only)
# The anchor families, on which everything is tried.
FAMILIES = tuple(name for name in ALL_FAMILIES if families.get(name).anchor)
# What a family file says that the engine does not read: names, numbers for costs, and what tests are made of.
_NUMBERS = {
    "model_types", "title", "notes", "anchor", "beams", "broken_in", "check", "covers", "decoder_shape", "encoder_shape",
    "model_shape", "media_of_images", "media_of_video", "tiny_config", "tiny_medium", "tiny_batch",
}  # fmt: skip


def _tells_nothing_new(name: str) -> bool:
    """Whether a family is one that a parent's file serves, by another name and in other numbers."""
    cls = type(families.get(name))
    parents = [type(families.get(other)) for other in ALL_FAMILIES if other != name]
    own = {said for said in vars(cls) if not said.startswith(("__", "_abc", "_tiny"))}
    return name not in FAMILIES and cls.__mro__[1] in parents and own <= _NUMBERS


RELATIVES = tuple(name for name in ALL_FAMILIES if _tells_nothing_new(name))
PAD, IMAGE, VIDEO = 0, 90, 91
# How far logits of size 10 may differ: sums in another order, a few units in the last place of fp32.
LOGITS = 2e-4


def _takes_video(name: str) -> bool:
    try:
        families.get(name).media_of_video(probed(name), (64, 64), 4)
    except FoveateError:
        return False
    return True


VIDEO_FAMILIES = tuple(name for name in ALL_FAMILIES if _takes_video(name))
# Ids that tiny configs give to placeholders and their brackets; tiny models never answer with them.
_SPECIAL = list(range(85, 99))


def full_layers(family: str) -> list[int]:
    """Decoder layers that see the whole prompt."""
    return list(families.get(family).full_layers(probed(family)))


def layer_count(family: str) -> int:
    """Decoder layers of the tiny model."""
    return len(families.get(family).decoder_windows(probed(family)))


def valid_layers(family: str) -> list[int]:
    """Decoder layers in front of which a stage may stand."""
    config = probed(family)
    return [layer for layer in range(layer_count(family)) if families.get(family).refuse_layer(config, layer) is None]


def slides(family: str) -> bool:
    """Whether some layers of the tiny model see a window of the prompt only."""
    return any(window is not None for window in families.get(family).decoder_windows(probed(family)))


def has_experts(family: str) -> bool:
    """Whether tokens of the decoder go to experts, each of which takes its own together."""
    text = probed(family).get_text_config().to_dict()
    return any("experts" in name and isinstance(number, int) and number > 1 for name, number in text.items())


def remembers(family: str) -> bool:
    """Whether some layers of the tiny model carry a state instead of attending."""
    return bool(families.get(family).stateful_layers(probed(family)))


def padded_on(side: str, family: str) -> dict[str, bool]:
    """Options of a call with this padding: behind a row it would spoil the states of a cache, which is refused."""
    return {"use_cache": False} if side == "right" and remembers(family) else {}


def packs(family: str) -> bool:
    """Whether the vision encoder reads all pictures of a call as one sequence, and stages may act in it."""
    return isinstance(families.get(family).encoder(probed(family)), PackedPath)


def sizes_differ(family: str) -> bool:
    """Whether pictures may fill unequal numbers of columns."""
    maker = Maker(family)
    return len({len(maker.picture(number).ids) for number in range(3)}) > 1


def axes_differ(family: str) -> bool:
    """Whether the decoder counts time, height and width apart (M-RoPE), so that positions come from the media of a prompt."""
    text = probed(family).get_text_config()
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [kind for kind in rotary.values() if isinstance(kind, dict)]  # each kind of layer may have its own
    return any("mrope_section" in found for found in (rotary, *kinds))


def encoder_layer(family: str) -> int | None:
    """The first layer of the vision encoder in front of which every method can act; None where no stage acts inside it."""
    path = families.get(family).encoder(probed(family))
    if path is None:
        return None
    windowed = path.windowed if isinstance(path, PackedPath) else ()
    return next(layer for layer in range(1, path.used) if layer - 1 not in windowed)


# Anchor families whose layers all see the whole prompt, and those whose positions are plain columns.
FULL_ANCHORS = tuple(family for family in FAMILIES if not slides(family))
PLAIN_ANCHORS = tuple(family for family in FAMILIES if not axes_differ(family))
# Models that transformers cannot run with beams.
NO_BEAMS = tuple(family for family in ALL_FAMILIES if not families.get(family).beams)
# The first decoder layer from 2 on at which FastV can act, and the next one that observes another layer.
FIRST_LAYER = {family: next(k for k in range(2, 99) if any(f < k for f in full_layers(family))) for family in ALL_FAMILIES}
SECOND_LAYER = {family: next(f for f in full_layers(family) if f >= FIRST_LAYER[family]) + 1 for family in ALL_FAMILIES}


def decoder_of(model: nn.Module) -> nn.Module:
    """The language model without its head."""
    return model.get_submodule(families.family_for(model.config).decoder)


def towers_of(model: nn.Module) -> list[nn.Module]:
    """The vision encoders in which stages may act."""
    path = families.family_for(model.config).encoder(model.config)
    return [] if path is None else [model.get_submodule(tower) for tower in path.towers]


def tiny_model(family: str, backend: str = "sdpa", seed: int = 0, config: Any = None) -> nn.Module:
    """A random model whose answers depend on the picture: weights are scaled until attention is not uniform.

    `config` is that of another member of the family than its tiny one.
    """
    torch.manual_seed(seed)
    config = families.get(family).tiny_config() if config is None else config
    model = getattr(transformers, families.get(family).auto_class).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in decoder_of(model).named_parameters():
            if parameter.ndim >= 2 and parameter.std() < 0.05:
                # What a linear layer reads from its state is normalised: much of it would blow up the roundings of fp32.
                parameter.mul_(2.0 if "linear_attn" in name else 6.0)
        for parameter in model.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(0, 0.3)  # some projections start at zero and would hide every picture
        model.get_output_embeddings().weight.normal_(0, 0.5)
    families.get(family).mend(model)
    model.set_attn_implementation(backend)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = _SPECIAL
    return model


class Models(dict[tuple[str, str], nn.Module]):
    """Tiny models by (family, backend), made when first asked for."""

    def __missing__(self, key: tuple[str, str]) -> nn.Module:
        self[key] = tiny_model(*key)
        return self[key]


@dataclass
class Row:
    """One prompt: pieces of text token ids, and images or videos in between."""

    pieces: list[Any]


class Maker:
    """Makes prompts and inputs of one family from a seed."""

    def __init__(self, family: str, seed: int = 1, config: Any = None) -> None:
        self.family, self.random, self.made = family, torch.Generator().manual_seed(seed), 0
        self._family = families.get(family)
        self._config = self._family.tiny_config() if config is None else config

    def text(self, length: int) -> Tensor:
        return torch.randint(3, 80, (length,), generator=self.random)

    def picture(self, number: int | None = None, kind: str = "image") -> TinyMedium:
        """The next image or video; `number` picks a size, where sizes differ."""
        if number is None:
            number, self.made = self.made, self.made + 1
        return self._family.tiny_medium(self._config, kind, number, self.random)

    def inputs(self, rows: list[Row], side: str = "left", mask: bool = True) -> dict[str, Tensor]:
        """Model inputs of several prompts; rows of unequal length are padded."""
        sequences = [torch.cat([_columns(piece) for piece in row.pieces]) for row in rows]
        width = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(rows), width), PAD)
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        for number, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[number, place] = sequence
            attention[number, place] = 1
        inputs = {"input_ids": ids}
        if mask:
            inputs["attention_mask"] = attention
        media = [piece for row in rows for piece in row.pieces if isinstance(piece, TinyMedium)]
        return inputs | self._family.tiny_batch(self._config, ids, media)

    def side_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """What the family's processor says about each column of a prompt, without media."""
        return self._family.tiny_batch(self._config, ids, [])


def _columns(piece: Any) -> Tensor:
    return piece.ids if isinstance(piece, TinyMedium) else piece


def ragged_rows(maker: Maker, batch: int) -> list[Row]:
    """Prompts of unequal length with 1, 2 and 0 images, text before, between and after."""
    rows = [
        Row([maker.text(5), maker.picture(), maker.text(7)]),
        Row([maker.text(3), maker.picture(), maker.text(4), maker.picture(), maker.text(5)]),
        Row([maker.text(12)]),
    ]
    return rows[:batch]


def generate(model: nn.Module, inputs: dict[str, Tensor], tokens: int = 6, **options: Any) -> Any:
    """Greedy generation with logits."""
    options.setdefault("do_sample", False)
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=tokens, output_logits=True, return_dict_in_generate=True, **options)


def greatest_difference(first: Any, second: Any) -> float:
    """Largest absolute difference of two generate outputs' logits."""
    return max(float((a - b).abs().max()) for a, b in zip(first.logits, second.logits, strict=True))
