"""Stages inside encoders that pack all pictures into one sequence, cut by cu_seqlens (Qwen2-VL and its successors).

Decisions are made on whole squares of patches, because the merger makes one visual token of each; so the ratio that a stage
names is the ratio that comes out. Rotary positions go with their patches, sequences and windows shrink, and the outputs of the
mergers get their full number of rows back: NaN from the last one (see `encoder`), zeros from those that feed decoder layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import PackedPath
from foveate.core.layout import Layout
from foveate.core.plan import Stage
from foveate.core.selection import Selection, merge_values
from foveate.core.view import Importance, Keys, Observation, TokenView
from foveate.engine import compat, conversation, forward, layout, observe
from foveate.engine.encoder import EncodedRow
from foveate.engine.prefill import ask


@dataclass
class Frame:
    """One image or one frame of a video inside the packed sequence, in units (squares of patches).

    Attributes:
        grid: (h, w) in units.
        order: [h * w] long, place in the packed sequence of each unit of the raster, at full length.
        left: [m] long, raster numbers of the units that are left, ascending.
        sizes: [m] fp32, how many original units each stands for.
        selections: (text of the stage, answer, row of this frame in it, units it chose from), in order.
    """

    grid: tuple[int, int]
    order: Tensor
    left: Tensor
    sizes: Tensor
    selections: list[tuple[str, Selection, int, int]] = field(default_factory=list)

    @property
    def places(self) -> Tensor:
        """[m] place, at full length, of each unit that is left."""
        return self.order[self.left]


@dataclass
class Packed:
    """One call of a packed encoder.

    Attributes:
        frames: its images and frames, in order.
        keys: a number for each, the same alone and in company.
        unit: patches of a unit.
        units: units at full length.
        left: [n] places of the units that are left, ascending; None while all are.
        windows: boundaries of windows and sequences among those that are left, by the tensor transformers gave.
        rotary: the rotary embeddings transformers gave, and those of the patches that are left.
        observed: what was measured, by (stage's layer, observation): for each patch that was left then.
    """

    frames: list[Frame]
    keys: tuple[int, ...]
    unit: int
    units: int
    left: Tensor | None = None
    windows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rotary: tuple[Tensor, tuple[Tensor, ...]] | None = None
    observed: dict[tuple[int, Observation], Tensor] = field(default_factory=dict)

    def patches(self, places: Tensor) -> Tensor:
        """Rows [n * unit] of the patches of units [n]."""
        inside = torch.arange(self.unit, device=places.device)
        return (places[:, None] * self.unit + inside).flatten()

    def slots(self) -> Tensor:
        """[units] where each unit is now; arbitrary for those that are gone."""
        assert self.left is not None
        now = torch.zeros(self.units, dtype=torch.long, device=self.left.device)
        return now.scatter(0, self.left, torch.arange(len(self.left), device=self.left.device))

    def boundaries(self, full: Tensor) -> Tensor:
        """Boundaries of sequences or windows among the patches that are left; empty ones vanish."""
        assert self.left is not None
        if id(full) not in self.windows or self.windows[id(full)][0] is not full:
            alive = torch.zeros(self.units + 1, dtype=torch.long, device=full.device)
            alive[self.left.to(full.device) + 1] = self.unit
            short = alive.cumsum(0)[full.long() // self.unit]
            self.windows[id(full)] = full, torch.unique_consecutive(short).to(full.dtype)
        return self.windows[id(full)][1]


_calls: ContextVar[tuple[tuple[object, Packed], ...]] = ContextVar("foveate_packed_calls", default=())


class PackedEncoderHooks:
    """The hooks around a packed vision encoder; arguments as of `EncoderHooks`."""

    def __init__(
        self,
        owner: object,
        model: nn.Module,
        path: PackedPath,
        stages: Mapping[int, Stage],
        texts: Mapping[Stage, str],
        shortcut: bool,
        layout_of: Callable[[conversation.Conversation], Layout | None],
    ) -> None:
        self.owner, self.path, self.stages, self.texts, self.shortcut = owner, path, stages, texts, shortcut
        self.layout_of = layout_of
        self.tower = model.get_submodule(path.tower)
        self.layers = compat.encoder_layers(self.tower)
        self.probed = {
            index: max(layer for layer in range(index) if layer not in path.windowed)
            for index, stage in stages.items()
            if stage.method.needs()
        }
        self.checked: set[int] = set()

    def install(self) -> list[RemovableHandle]:
        """Register every hook."""
        handles = [
            self.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True),
            self.tower.register_forward_hook(self._after_tower, always_call=True),
            self.tower.get_submodule(self.path.merger).register_forward_hook(self._after_merger(torch.nan)),
        ]
        for name in self.path.side_mergers:
            handles.append(self.tower.get_submodule(name).register_forward_hook(self._after_merger(0.0)))
        for index in range(min(self.stages), len(self.layers)):
            handles.append(self.layers[index].register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
        for index, probed in self.probed.items():
            attention = self.layers[probed].get_submodule(self.path.attention)
            handles.append(attention.register_forward_pre_hook(self._before_attention(index), with_kwargs=True))
            handles.append(attention.register_forward_hook(self._after_attention, always_call=True))
        return handles

    def settle(self) -> None:
        """Forget a call that was interrupted."""
        self._leave()
        for probed in self.probed.values():
            observe.disarm(self.layers[probed].get_submodule(self.path.attention))

    def _talk(self) -> conversation.Conversation | None:
        running = forward.current(self.owner)
        return running.conversation if running is not None else conversation.current(self.owner)

    def _current(self) -> Packed | None:
        return next((call for owner, call in reversed(_calls.get()) if owner is self.owner), None)

    def _leave(self) -> None:
        _calls.set(tuple((owner, call) for owner, call in _calls.get() if owner is not self.owner))

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._leave()
        talk = self._talk()
        if talk is None:
            return
        pixels: Tensor = args[0] if args else kwargs["hidden_states"]
        grids: Tensor = args[1] if len(args) > 1 else kwargs["grid_thw"]
        side = self.path.unit
        unit = side * side
        units = pixels.shape[0] // unit
        order = compat.unit_order(self.tower, grids, units).to(pixels.device)
        frames, start = [], 0
        for t, h, w in grids.tolist():
            grid = (h // side, w // side)
            size = grid[0] * grid[1]
            for _ in range(t):
                left = torch.arange(size, device=pixels.device)
                frames.append(Frame(grid, order[start : start + size], left, torch.ones(size, device=pixels.device)))
                start += size
        keys = layout.encoder_keys(self.layout_of(talk), len(talk.encoded), len(frames))
        _calls.set((*_calls.get(), (self.owner, Packed(frames, keys, unit, units))))

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._current()
            if call is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            stage = self.stages.get(index)
            if stage is not None:
                hidden = self._run(call, index, stage, hidden)
            if call.left is None:
                return None
            kwargs = {**kwargs, **self._shorter(call, kwargs)}
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return run

    def _shorter(self, call: Packed, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A layer's side inputs for the patches that are left."""
        assert call.left is not None
        new: dict[str, Any] = {}
        rotary = kwargs.get("position_embeddings")
        if rotary is not None:
            if call.rotary is None or call.rotary[0] is not rotary[0]:
                rows = call.patches(call.left)
                call.rotary = rotary[0], tuple(part[rows.to(part.device)] for part in rotary)
            new["position_embeddings"] = call.rotary[1]
        cuts = call.boundaries(kwargs["cu_seqlens"])
        new["cu_seqlens"] = cuts
        if kwargs.get("max_seqlen") is not None:
            new["max_seqlen"] = int((cuts[1:] - cuts[:-1]).max())
        return new

    def _run(self, call: Packed, index: int, stage: Stage, hidden: Tensor) -> Tensor:
        """Run a stage; returns the states [n', D] of the patches that stay."""
        width = hidden.shape[-1]
        states = hidden.view(-1, call.unit * width)
        now = None if call.left is None else call.slots()
        buckets: dict[tuple[int, tuple[int, int] | None, int], list[Frame]] = defaultdict(list)
        for frame in call.frames:
            count = len(frame.left)
            grid = frame.grid if count == frame.grid[0] * frame.grid[1] else None
            buckets[count, grid, self._kept(stage, count, grid)].append(frame)
        text = self.texts[stage]
        if self.shortcut and all(keep == count for count, _, keep in buckets):
            for frame in call.frames:
                everything = Selection(torch.arange(len(frame.left), device=hidden.device)[None])
                frame.selections.append((text, everything, 0, len(frame.left)))
            return hidden
        numbers = {id(frame): number for number, frame in zip(call.keys, call.frames, strict=True)}
        check = index not in self.checked or hidden.device.type == "cpu"
        for (count, grid, keep), frames in buckets.items():
            places = torch.stack([frame.places for frame in frames])
            slots = places if now is None else now[places]
            features = states[slots]  # [G, m, unit * D], a copy
            raster = torch.stack([frame.left for frame in frames])
            wide = torch.tensor([frame.grid[1] for frame in frames])[:, None].to(hidden.device)
            view = TokenView(
                features=features,
                coords=torch.stack([raster * 0, raster // wide, raster % wide], dim=-1),
                grid=None if grid is None else (1, *grid),
                sizes=torch.stack([frame.sizes for frame in frames]),
                group_keys=tuple(numbers[id(frame)] for frame in frames),
                observed={need: self._of_units(call, index, need, slots) for need in stage.method.needs()},
            )
            selection = ask(stage, view, keep, check)
            if selection.is_merge:
                merged = merge_values(features, selection)
                states = states.index_copy(0, slots.flatten(), merged.flatten(0, 1))
            sizes = selection.kept_sizes(view.sizes)
            for group, frame in enumerate(frames):
                frame.selections.append((text, selection, group, count))
                frame.left, frame.sizes = frame.left[selection.kept[group]], sizes[group]
        self.checked.add(index)
        left = torch.cat([frame.places for frame in call.frames]).sort().values
        kept = left if now is None else now[left]
        call.left, call.windows, call.rotary = left, {}, None
        return states[kept].view(-1, width)

    def _kept(self, stage: Stage, units: int, grid: tuple[int, int] | None) -> int:
        whole = None if grid is None else (1, *grid)
        if stage.budget is None or stage.budget.count is None:
            return stage.kept_of(units, whole)
        return stage.kept_of(units * self.path.unit**2, whole) // self.path.unit**2

    def _of_units(self, call: Packed, index: int, need: Observation, slots: Tensor) -> Tensor:
        """What was measured for each patch, for units [G, m]: the mean, or all of it side by side."""
        measured = call.observed[(index, need)]
        by_unit = measured.view(-1, call.unit, *measured.shape[1:])
        return by_unit.mean(1)[slots] if measured.ndim == 1 else by_unit.flatten(1)[slots]

    def _before_attention(self, index: int) -> Callable[..., None]:
        stage = self.stages[index]

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self._current()
            if call is None:
                return
            parts: dict[Observation, list[Tensor]] = {need: [] for need in stage.method.needs()}

            def measure(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
                # Flash gets all sequences in one call, the other implementations one after the other.
                cuts = kwargs["cu_seqlens"].tolist()
                lengths = [b - a for a, b in pairwise(cuts)]
                lengths = lengths if query.shape[2] == cuts[-1] else [query.shape[2]]
                with torch.no_grad():
                    for q, k in zip(torch.split(query, lengths, 2), torch.split(key, lengths, 2), strict=True):
                        for need, found in parts.items():
                            if isinstance(need, Importance):
                                found.append(observe.column_means(q, k, None, scaling)[0])
                            else:
                                assert isinstance(need, Keys)
                                found.append(k[0].float().mean(0))
                for need, found in parts.items():
                    call.observed[(index, need)] = torch.cat(found)

            observe.arm(module, observe.EveryCall(measure))

        return run

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        observe.disarm(module)

    def _after_merger(self, fill: float) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            call = self._current()
            if call is None or call.left is None or output.shape[0] == call.units:
                return None
            full = output.new_full((call.units, output.shape[1]), fill)
            return full.index_copy(0, call.left.to(output.device), output)

        return run

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, talk = self._current(), self._talk()
        self._leave()
        if call is None or talk is None or output is None:
            return None
        talk.encoded += [EncodedRow(len(frame.order), frame.left, frame.sizes, frame.selections) for frame in call.frames]
        state = getattr(output, "last_hidden_state", None)
        if call.left is not None and isinstance(state, Tensor) and state.shape[0] != call.units * call.unit:
            full = state.new_zeros(call.units * call.unit, state.shape[1])
            output["last_hidden_state"] = full.index_copy(0, call.patches(call.left), state)
            return output
        return None
