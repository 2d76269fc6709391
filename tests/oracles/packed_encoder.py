"""Encoders that pack all pictures into one sequence, and the same encoders at full length, with masked keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate import families
from foveate.core.encoder import PackedPath, RasterPath
from foveate.core.trace import MediumTrace, Trace
from tests import tiny
from tests.oracles.row_encoder import stage_of


def deeper(family: str) -> Any:
    """A family's tiny config with encoder layers for several stages."""
    config = families.get(family).tiny_config()
    if isinstance(families.get(family).encoder(config), RasterPath):
        config.vision_config.num_hidden_layers = 4
    return config


class Case:
    """A model and prompts with one, two and no media."""

    def __init__(self, family: str, backend: str, kind: str) -> None:
        self.family = family
        kind = kind if family in tiny.VIDEO_FAMILIES else "image"
        config = deeper(family)
        path = families.get(family).encoder(config)
        assert isinstance(path, PackedPath)
        self.model = tiny.tiny_model(family, backend, config=config)
        self.maker = maker = tiny.Maker(family, config=config)
        # Where all placeholders look alike, a call holds images or videos.
        other = "image" if "video" in families.get(family).placeholders else kind
        self.rows = [
            tiny.Row([maker.text(5), maker.picture(kind=kind), maker.text(7)]),
            tiny.Row([maker.text(3), maker.picture(kind=other), maker.text(4), maker.picture(kind=kind), maker.text(5)]),
            tiny.Row([maker.text(12)]),
        ]
        self.inputs = maker.inputs(self.rows)
        self.tower: Any = tiny.towers_of(self.model)[0]
        self.path, self.unit = path, path.unit**2

    def frames(self, trace: Trace) -> list[tuple[MediumTrace, int]]:
        """(medium, number of its frame) in the order of the encoder: all images, then all videos."""
        media = sorted(trace.media, key=lambda entry: entry.medium.shape.kind)
        return [(entry, t) for entry in media for t in range(entry.medium.shape.grid[0])]

    def raster(self, h: int, w: int) -> Tensor:
        """[h * w, unit] patches of each unit of a picture whose patches lie in raster order."""
        side = self.path.unit
        patches = torch.arange(h * w * self.unit).view(h * side, w * side)
        return torch.stack([square.flatten() for band in patches.split(side) for square in band.split(side, dim=1)])

    def dense(self, trace: Trace, texts: list[str]) -> Any:
        """The encoder at full length: merged states in place at each stage's layer, dead keys masked from there on."""
        return (raster_encoder if isinstance(self.path, RasterPath) else dense_encoder)(self, trace, texts)


def window_places(tower: Any, grids: Tensor) -> Tensor:
    """Which unit lies at each place of the sequence, from transformers' own rule."""
    module = sys.modules[type(tower).__module__]
    if not hasattr(module, "get_vision_window_index"):
        return torch.arange(int(grids.prod(1).sum()) // tower.spatial_merge_size**2)
    return module.get_vision_window_index(
        grids, spatial_merge_size=tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
    )[0]


def of_heads(module: Any, states: Tensor) -> list[Tensor]:
    """Queries, keys and values [n, H, D] of what an attention module projects together; key heads may be fewer."""
    shared = getattr(module, "num_key_value_groups", 1)
    own = module.num_heads // shared
    width = states.shape[1] // (module.num_heads + 2 * own)
    query, key, value = states.view(len(states), -1, width).split([module.num_heads, own, own], dim=1)
    return [query, *(part.repeat_interleave(shared, dim=1) for part in (key, value))]


@contextmanager
def dense_encoder(case: Case, trace: Trace, texts: list[str]) -> Iterator[None]:
    """Blocks at full length: merged states in place at each stage's layer, dead keys masked from there on.

    Images and videos pass the tower in two calls; the frames of the second follow those of the first.
    """
    tower, unit = case.tower, case.unit
    done = [0]
    state: dict[str, Any] = {}

    def before_tower(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grids = args[1] if len(args) > 1 else kwargs["grid_thw"]
        windowed = hasattr(tower, "fullatt_block_indexes")
        at = window_places(tower, grids) if windowed else torch.arange(int(grids.prod(1).sum()) // unit)
        place = torch.argsort(at)
        count = int(grids[:, 0].sum())
        frames = case.frames(trace)[done[0] : done[0] + count]
        done[0] += count
        state.update(alive={}, maps={})
        for number, text in enumerate(texts):
            layer = int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
            change, keep, start = torch.eye(len(at)), torch.zeros(len(at), dtype=torch.bool), 0
            for entry, t in frames:
                kept, own, arriving = stage_of(entry, number)
                size = entry.medium.shape.grid[1] * entry.medium.shape.grid[2]
                here, there = kept // size == t, arriving // size == t
                targets = place[start + kept[here] % size]
                sources = place[start + arriving[there] % size]
                change[targets] = 0
                change[targets[:, None], sources[None]] = own[here][:, there]
                keep[targets] = True
                start += size
            state["alive"][layer] = keep.repeat_interleave(unit)
            state["maps"][layer] = torch.kron(change, torch.eye(unit))

    def before_block(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index in state["maps"]:
                hidden = state["maps"][index] @ hidden
            return (hidden, *args[1:]), kwargs

        return run

    def attention(index: int, module: Any) -> Any:
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb_vision

        def run(hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any) -> Tensor:
            length = len(hidden_states)
            together = (
                module.qkv(hidden_states)
                if hasattr(module, "qkv")
                else torch.cat([getattr(module, name)(hidden_states) for name in "qkv"], dim=1)
            )
            q, k, v = of_heads(module, together)
            if hasattr(module, "q_norm"):
                q, k = module.q_norm(q), module.k_norm(k)
            q, k = rotate(q, k, *position_embeddings)
            owner = torch.bucketize(torch.arange(length), cu_seqlens[1:], right=True)
            seen = owner[:, None] == owner[None]
            for layer, alive in state["alive"].items():
                if layer <= index:
                    # Dead rows may see themselves, so that they hold numbers.
                    seen = seen & (alive[None] | torch.eye(length, dtype=torch.bool))
            scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
            mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
            return module.proj(mixed.reshape(length, -1))

        return run

    handles = [tower.register_forward_pre_hook(before_tower, with_kwargs=True)]
    for index, block in enumerate(tower.blocks):
        handles.append(block.register_forward_pre_hook(before_block(index), with_kwargs=True))
        block.attn.forward = attention(index, block.attn)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in tower.blocks:
            del block.attn.forward


@contextmanager
def raster_encoder(case: Case, trace: Trace, texts: list[str]) -> Iterator[None]:
    """The plain encoder of patches in raster order, with states substituted and more masked at full length."""
    change, dead = {}, {}
    total = sum(h * w for entry, _ in case.frames(trace) for _, h, w in [entry.medium.shape.grid]) * case.unit
    for number, text in enumerate(texts):
        layer = int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        change[layer], dead[layer], start = torch.eye(total), torch.ones(total, dtype=torch.bool), 0
        for entry, _ in case.frames(trace):
            _, h, w = entry.medium.shape.grid
            units = start + case.raster(h, w)
            kept, own, arriving = stage_of(entry, number)
            for member in units.T:
                change[layer][member[kept]] = 0
                change[layer][member[kept][:, None], member[arriving][None]] = own
            dead[layer][units[kept].flatten()] = False
            start += h * w * case.unit

    def before_layer(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, mask = args
            gone = [keys for layer, keys in dead.items() if layer <= index]
            hidden = change[index] @ hidden if index in change else hidden
            return (hidden, mask.masked_fill(gone[-1], torch.finfo(mask.dtype).min) if gone else mask), kwargs

        return run

    layers = case.tower.transformer.layers
    handles = [layer.register_forward_pre_hook(before_layer(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def alive_columns(case: Case, trace: Trace) -> dict[int, Tensor]:
    alive: dict[int, Tensor] = {}
    for number, (text, _) in enumerate(trace.media[0].stages):
        layer = 0 if "site=" in text else int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        columns = torch.ones(case.inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer] = columns
    return alive
