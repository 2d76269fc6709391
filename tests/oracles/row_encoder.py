"""Encoders that take pictures side by side, a visual token for each unit, and the same encoders at full length.

The full-length encoder has dead keys masked and merged states substituted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate import families
from foveate.core.trace import MediumTrace, Trace
from foveate.engine import compat
from foveate.families import family_for
from tests import tiny


def clip_llava(feature_layer: Any = -2, strategy: str = "default") -> Any:
    from transformers import CLIPVisionConfig

    return _llava(CLIPVisionConfig, feature_layer, strategy)


def siglip_llava() -> Any:
    from transformers import SiglipVisionConfig

    return _llava(SiglipVisionConfig, -1, "full")


def _llava(vision: Any, feature_layer: Any, strategy: str) -> Any:
    config = family_for(tiny.tiny_model("llava", "sdpa").config).tiny_config()
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, image_size=24, patch_size=4, num_hidden_layers=5)
    config.vision_config = vision(**sizes)
    config.vision_feature_layer, config.vision_feature_select_strategy = feature_layer, strategy
    return config


def deeper(family: str) -> Any:
    """A family's tiny config with enough encoder layers for several stages, and 36 units of each picture."""
    config = families.get(family).tiny_config()
    config.vision_config.num_hidden_layers = 5
    if family == "internvl":
        config.vision_config.image_size, config.image_seq_length = (48, 48), 36
    elif family != "paligemma":  # 2 x 2 patches make a visual token
        config.vision_config.image_size = 48
    return config


CONFIGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "clip": ("llava", clip_llava),
    "clip-full": ("llava", lambda: clip_llava(-1, "full")),
    "clip-several": ("llava", lambda: clip_llava([-2, -1])),
    "siglip": ("llava", siglip_llava),
    **{
        name: (name, partial(deeper, name))
        for name in ("internvl", "paligemma", "gemma3", "idefics3", "aya_vision", "cohere2_vision", "ovis2")
    },
    "idefics3-padded": ("idefics3", partial(deeper, "idefics3")),
}


class Case:
    """A model and a batch of prompts with one, two and no pictures."""

    def __init__(self, name: str, backend: str = "sdpa", batch: int = 3) -> None:
        family, make = CONFIGS[name]
        config = make()
        self.model = tiny.tiny_model(family, backend, config=config)
        self.maker = tiny.Maker(family, config=config)
        self.rows = tiny.ragged_rows(self.maker, batch)
        self.inputs = self.maker.inputs(self.rows)
        if name.endswith("padded"):  # the right half of each row's first tile
            self.inputs["pixel_attention_mask"][:, 0, :, 24:] = 0
        path = family_for(config).encoder(config)
        assert path is not None
        self.path = path
        with torch.no_grad():  # attention that is all but uniform ranks by rounding
            for weight, parameter in self.model.get_submodule(path.towers[0]).named_parameters():
                if weight.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter.mul_(0.2 / parameter.std())

    @property
    def units(self) -> Tensor:
        """[units, side * side] patches of each, in raster order: the squares that one visual token is made of."""
        (height, width), side = self.path.grid, self.path.unit
        raster = torch.arange(height * width).view(height, width)
        return torch.stack([square.flatten() for band in raster.split(side) for square in band.split(side, dim=1)])

    def plan(self, text: str) -> str:
        """The plan with its {counts} of units in patches."""
        return re.sub(r"\{(\d+)\}", lambda found: str(int(found[1]) * self.path.unit**2), text)


def stage_of(entry: MediumTrace, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept originals [K] of a stage, its own matrix [K, M], and the originals [M] that arrived at it."""
    size = entry.medium.shape.grid_tokens
    whole = entry.stages[number][1].to_dense().double()
    before = entry.stages[number - 1][1].to_dense().double() if number else torch.eye(size, dtype=torch.double)
    own = torch.linalg.lstsq(before.T, whole.T).solution.T.float()
    return entry.kept[number], own, entry.kept[number - 1] if number else torch.arange(size)


@contextmanager
def dense_encoder(case: Case, trace: Trace, texts: list[str]) -> Iterator[None]:
    """The plain encoder at full length: at each stage's layer merged states in place, from there on dead keys masked.

    What its dead rows hold is arbitrary; the language model is to ignore them.
    """
    prefix, patches, units = case.path.prefix, case.path.patches, case.units
    count = len(units)
    sequences = [(entry, piece) for entry in trace.media for piece in range(len(entry.medium.shape.pieces))]
    alive, maps = {}, {}
    for number, text in enumerate(texts):
        layer = int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        # What attention adds to the scores of each key.
        keep = torch.full((len(sequences), prefix + patches), torch.finfo(torch.float32).min)
        keep[:, :prefix] = 0
        weighs = any("proportional" in earlier for earlier in texts[: number + 1])
        change = torch.eye(prefix + patches).repeat(len(sequences), 1, 1)
        for row, (entry, piece) in enumerate(sequences):
            kept, own, arriving = stage_of(entry, number)
            here, there = (kept // count == piece), (arriving // count == piece)
            kept, arriving, own = kept[here] % count, arriving[there] % count, own[here][:, there]
            parts = (entry.stages[number][1].to_dense()[here] != 0).sum(1)
            keep[row, prefix + units[kept]] = parts.log()[:, None] if weighs else 0.0
            for member in units.T:
                targets, sources = prefix + member[kept], prefix + member[arriving]
                change[row, targets] = 0
                change[row, targets[:, None], sources[None]] = own
        alive[layer], maps[layer] = keep, change

    def substitute(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            changed = maps[index] @ hidden
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return run

    def mask(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            now = [keep for layer, keep in alive.items() if layer <= index]
            seen = now[-1][:, None, None]
            seen = seen.expand(-1, 1, seen.shape[-1], -1)
            padding = kwargs.get("attention_mask")
            if padding is not None:
                hides = ~padding if padding.dtype == torch.bool else padding < 0
                seen = seen.masked_fill(hides, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": seen}

        return run

    layers = compat.encoder_layers(case.model.get_submodule(case.path.towers[0]))
    handles = [layers[index].register_forward_pre_hook(substitute(index), with_kwargs=True) for index in maps]
    for index in range(min(alive), len(layers)):
        attention = layers[index].get_submodule(case.path.attention)
        handles.append(attention.register_forward_pre_hook(mask(index), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def alive_columns(case: Case, trace: Trace) -> dict[int, Tensor]:
    """{decoder layer: [B, S] bool} of what each stage left, those of the encoder at layer 0."""
    alive: dict[int, Tensor] = {}
    for number, (text, _) in enumerate(trace.media[0].stages):
        inside = "site=vision" in text or "site=pre_llm" in text
        layer = 0 if inside else int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        columns = torch.ones(case.inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer] = columns
    return alive


def merges_in_decoder(case: Case, trace: Trace) -> dict[int, Tensor]:
    """{layer: [B, S, S]} of the merges of the last stage, if it merges in front of a decoder layer."""
    text = trace.media[0].stages[-1][0]
    if "illava" not in text or "site=vision" in text:
        return {}
    layer, width = int(text.partition("layer=")[2].partition(",")[0]), case.inputs["input_ids"].shape[1]
    change = torch.eye(width).repeat(len(case.inputs["input_ids"]), 1, 1)
    for entry in trace.media:
        kept, own, arriving = stage_of(entry, len(entry.stages) - 1)
        kept, arriving = entry.medium.columns[kept], entry.medium.columns[arriving]
        change[entry.medium.row, kept] = 0
        change[entry.medium.row, kept[:, None], arriving[None]] = own
    return {layer: change}
