"""Stages inside encoders that pack all pictures into one sequence, cut by cu_seqlens (Qwen2-VL and its successors).

Decisions are made on whole squares of patches, because the merger makes one visual token of each; so the ratio that a stage
names is the ratio that comes out. Rotary positions go with their patches, sequences and windows shrink, and the outputs of the
mergers get their full number of rows back: NaN from the last one (see `encoder`), zeros from those that feed decoder layers.

What is left of a sequence is known from shapes. Read from the device are the grids, before the encoder's first layer, and, once
after each stage, how many patches windows have left; transformers reads both too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import PackedPath
from foveate.core.plan import Stage
from foveate.core.selection import Selection, merge_values
from foveate.core.view import Observation, TokenView
from foveate.engine import compat, observe
from foveate.engine.choosing import choose
from foveate.engine.conversation import Conversation
from foveate.engine.encoder_calls import EncoderCallHooks, measured
from foveate.engine.encoder_state import EncodedRow, Frame, Packed


class PackedEncoderHooks(EncoderCallHooks[PackedPath, Packed]):
    """The hooks around a packed vision encoder; arguments as of `EncoderCallHooks`."""

    @property
    def tower(self) -> nn.Module:
        """The encoder."""
        return next(iter(self.towers))

    def install(self) -> list[RemovableHandle]:
        """Register every hook."""
        handles = [*super().install(), *self._mergers()]
        layers = self.towers[self.tower]
        for index in range(min(self.stages, default=len(layers)), len(layers)):
            handles.append(layers[index].register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
        return handles

    def _mergers(self) -> list[RemovableHandle]:
        """Hooks on what makes visual tokens of units."""
        handles = [self.tower.get_submodule(self.path.merger).register_forward_hook(self._after_merger(torch.nan))]
        for name in self.path.side_mergers:
            handles.append(self.tower.get_submodule(name).register_forward_hook(self._after_merger(0.0)))
        return handles

    def _probed_layer(self, index: int) -> int:
        return max(layer for layer in range(index) if layer not in self.path.windowed)

    def _begin(self, conversation: Conversation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
        pixels: Tensor = args[0] if args else kwargs["hidden_states"]
        grids: Tensor = args[1] if len(args) > 1 else kwargs["grid_thw"]
        side = self.path.unit
        unit = side * side
        units = pixels.shape[0] // unit
        grids = grids.cpu()
        order = compat.unit_order(self.tower, grids, units).to(pixels.device, non_blocking=True)
        frames = frames_of([(h // side, w // side) for t, h, w in grids.tolist() for _ in range(t)], order)
        looked_at = any(need.given for stage in self.stages.values() for need in stage.method.needs())
        return Packed(
            self._next(conversation, len(frames)), frames, unit, units, pixels=pixels.view(units, -1) if looked_at else None
        )

    def _enter_layer(
        self, call: Packed, index: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]] | None:
        stage = self.stages.get(index)
        if stage is not None:
            hidden = self._run(call, index, stage, hidden)
        return None if call.left is None else (hidden, {**kwargs, **self._shorter(call, index, kwargs)})

    def _shorter(self, call: Packed, index: int, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A layer's side inputs for the patches that are left."""
        new = self._shorter_rotary(call, kwargs)
        new["cu_seqlens"], longest = call.boundaries(kwargs["cu_seqlens"], index in self.path.windowed)
        if kwargs.get("max_seqlen") is not None:
            new["max_seqlen"] = longest
        return new

    def _shorter_rotary(self, call: Packed, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Rotary embeddings of the patches that are left, where a layer gets some."""
        assert call.left is not None
        rotary = kwargs.get("position_embeddings")
        if rotary is None:
            return {}
        if call.rotary is None or call.rotary[0] is not rotary[0]:
            rows = call.patches(call.left)
            call.rotary = rotary[0], tuple(part[rows.to(part.device)] for part in rotary)
        return {"position_embeddings": call.rotary[1]}

    def _run(self, call: Packed, index: int, stage: Stage, hidden: Tensor) -> Tensor:
        """Run a stage; returns the states [n', D] of the patches that stay."""
        width = hidden.shape[-1]
        states = hidden.view(-1, call.unit * width)
        now = None if call.left is None else call.slots()
        buckets: dict[tuple[int, tuple[int, int, int] | None, int], list[Frame]] = defaultdict(list)
        for frame in call.frames:
            count = len(frame.left)
            grid = (1, *frame.grid) if count == frame.grid[0] * frame.grid[1] else None
            by_picture = stage.budget is not None and not stage.budget.is_fixed
            buckets[count, grid, 0 if by_picture else self._kept(stage, count, grid)].append(frame)
        text = str(stage)
        if self.shortcut and all(keep == count for count, _, keep in buckets):
            for frame in call.frames:
                everything = Selection(torch.arange(len(frame.left), device=hidden.device)[None])
                frame.selections.append((text, everything, 0, len(frame.left)))
            return hidden
        known = {id(frame): row for row, frame in zip(call.rows, call.frames, strict=True)}
        check = self._check(index, hidden.device)
        for (count, grid, keep), frames in buckets.items():
            places = torch.stack([frame.places for frame in frames])
            slots = places if now is None else now[places]
            features = states[slots]  # [G, m, unit * D], a copy
            raster = torch.stack([frame.left for frame in frames])
            wide = torch.tensor([frame.grid[1] for frame in frames], device="cpu")[:, None].to(hidden.device, non_blocking=True)
            view = TokenView(
                features=features,
                coords=torch.stack([raster * 0, raster // wide, raster % wide], dim=-1),
                grid=grid,
                sizes=torch.stack([frame.sizes for frame in frames]),
                group_keys=tuple(known[id(frame)][0] for frame in frames),
                asks=tuple(known[id(frame)][1] for frame in frames) if any(known[id(frame)][1] for frame in frames) else (),
                observed={
                    need: self._pixels(call, frames) if need.given else self._of_units(call, index, need, slots)
                    for need in stage.method.needs()
                },
            )
            for groups, selection in choose(stage, view, keep, check):
                if selection.is_merge:
                    merged = merge_values(features, selection)
                    states = states.index_copy(0, slots.flatten(), merged.flatten(0, 1))
                sizes = selection.kept_sizes(view.sizes[groups])
                for group, number in enumerate(groups):
                    frame = frames[number]
                    frame.selections.append((text, selection, group, count))
                    frame.left, frame.sizes = frame.left[selection.kept[group]], sizes[group]
        self.checked.add(index)
        left = torch.cat([frame.places for frame in call.frames]).sort().values
        kept = left if now is None else now[left]
        call.left, call.cuts, call.rotary = left, {}, None
        return states[kept].view(-1, width)

    def _pixels(self, call: Packed, frames: Sequence[Frame]) -> Tensor:
        """[G, m, D] fp32, the pixel values of what is left of some frames."""
        assert call.pixels is not None
        return call.pixels[torch.stack([frame.first + frame.left for frame in frames])].detach().float()

    def _of_units(self, call: Packed, index: int, need: Observation, slots: Tensor) -> Tensor:
        """The mean of what was measured for each patch, for units [G, m]."""
        return call.observed[(index, need)].view(-1, call.unit).mean(1)[slots]

    def _measuring(self, call: Packed, layer: int, kwargs: dict[str, Any]) -> observe.Callback:
        parts: dict[tuple[int | None, Observation], list[Tensor]] = {wanted: [] for wanted in self.wanted[layer]}

        def measure(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
            # Flash gets all sequences in one call, the other implementations one after the other.
            lengths = call.lengths if query.shape[2] == sum(call.lengths) else [query.shape[2]]
            for q, k in zip(torch.split(query, lengths, 2), torch.split(key, lengths, 2), strict=True):
                for (_, need), found in parts.items():
                    found.append(measured(need, q, k, None, scaling)[0])
            for (index, need), found in parts.items():
                values = torch.cat(found)
                call.observed[(index, need)] = values if index is not None else self._of_all(call, values)

        return observe.EveryCall(measure)

    def _of_all(self, call: Packed, values: Tensor) -> Tensor:
        """What was measured for each patch that is left [n, ...], for all of them, zeros for those that are gone."""
        if call.left is None or len(values) != len(call.left) * call.unit:
            return values
        full = values.new_zeros(call.units * call.unit, *values.shape[1:])
        return full.index_copy(0, call.patches(call.left), values)

    def _after_merger(self, fill: float) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            call = self._current()
            if call is None or call.left is None or output.shape[0] == call.units:
                return None
            full = output.new_full((call.units, output.shape[1]), fill)
            return full.index_copy(0, call.left.to(output.device), output)

        return run

    def _rows(self, call: Packed) -> list[EncodedRow]:
        observed = {
            need: values.view(-1, call.unit, *values.shape[1:]).mean(1)
            for (index, need), values in call.observed.items()
            if index is None
        }
        return [
            EncodedRow(
                len(frame.order),
                frame.left,
                frame.sizes,
                frame.selections,
                {need: values[frame.order] for need, values in observed.items()},
            )
            for frame in call.frames
        ]

    def _lengthen(self, call: Packed, output: Any) -> Any:
        state = getattr(output, "last_hidden_state", None)
        if call.left is None or not isinstance(state, Tensor) or len(call.left) == call.units:
            return None
        # Some are in patches, some in units already.
        whole = state.shape[0] == len(call.left)
        rows = call.left if whole else call.patches(call.left)
        full = state.new_zeros(call.units * (1 if whole else call.unit), state.shape[1])
        output["last_hidden_state"] = full.index_copy(0, rows.to(state.device), state)
        return output


def frames_of(grids: Sequence[tuple[int, int]], order: Tensor) -> list[Frame]:
    """Images and frames of these (h, w) in units, whose units lie in `order` [units], all of them left."""
    frames, start = [], 0
    for grid in grids:
        size = grid[0] * grid[1]
        left = torch.arange(size, device=order.device)
        sizes = torch.ones(size, device=order.device, dtype=torch.float32)
        frames.append(Frame(grid, order[start : start + size], left, sizes, start))
        start += size
    return frames
