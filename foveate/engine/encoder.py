"""Stages inside encoders that take pictures side by side, [B, tokens, D].

The encoder really gets shorter; what leaves it has its full number of rows again.

Rows of tokens that are gone pass the projector as zeros and leave it as NaN: from there on nobody counts them, and whatever
transformers does between the projector and the prompt (unpadding, splitting, scattering into placeholders) carries the mark
along. In front of the first decoder layer the marked columns are dropped (`entrance.enter`). Where neighbours are mixed after
the projector, zeros leave it instead of marks, and the entrance knows from the rows what is left of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import EncoderPath
from foveate.core.layout import Layout
from foveate.core.plan import Stage
from foveate.core.selection import Selection, merge_values
from foveate.core.site import Point
from foveate.core.view import Observation, TokenView
from foveate.engine import observe
from foveate.engine.asking import ask
from foveate.engine.conversation import Conversation
from foveate.engine.encoder_calls import EncoderCallHooks, measured
from foveate.engine.encoder_state import Encoded, EncodedRow
from foveate.engine.middle import Middle
from foveate.engine.projection import Alive, project_mask, take
from foveate.errors import UnsupportedCombination


class EncoderHooks(EncoderCallHooks[EncoderPath, Encoded]):
    """The hooks around an encoder that takes its rows side by side; arguments as of `EncoderCallHooks`."""

    def __init__(
        self,
        owner: object,
        model: nn.Module,
        path: EncoderPath,
        stages: Mapping[int, Stage],
        shortcut: bool,
        layout_of: Callable[[Conversation], Layout | None],
        asked: Sequence[Observation] = (),
    ) -> None:
        super().__init__(owner, model, path, stages, shortcut, layout_of, asked)
        self.projector = model.get_submodule(path.projector)
        self.pooler = model.get_submodule(path.pooler) if path.pooler else None
        self.members = _members(path)
        self.middles = [
            Middle(layers[index - 1], *path.middle, partial(self._in_middle, index, stage))
            for layers in self.towers.values()
            for index, stage in stages.items()
            if stage.site.point is Point.MID and path.middle is not None
        ]
        self._finished: ContextVar[Encoded | None] = ContextVar("foveate_encoded", default=None)

    def install(self) -> list[RemovableHandle]:
        """Register every hook."""
        handles = [*super().install(), self.projector.register_forward_hook(self._after_projector)]
        if self.pooler is not None:
            handles.append(self.pooler.register_forward_hook(self._after_pooler))
        for layers in self.towers.values():
            for index in range(min(self.stages, default=len(layers)), len(layers)):
                handles.append(layers[index].register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
            handles += self._weighed(layers)
        for middle in self.middles:
            handles += middle.install()
        return handles

    def _weighed(self, layers: nn.ModuleList) -> list[RemovableHandle]:
        """Hooks on the attention of every layer from the first stage on that makes attention weigh sizes."""
        first = min((index for index, stage in self.stages.items() if stage.method.weighs_sizes), default=len(layers))
        return [
            layer.get_submodule(self.path.attention).register_forward_pre_hook(self._weigh, with_kwargs=True)
            for layer in layers[first:]
        ]

    def settle(self) -> None:
        """Forget a call that was interrupted."""
        super().settle()
        for middle in self.middles:
            middle.settle()

    def _leave(self) -> None:
        super()._leave()
        self._finished.set(None)

    def _begin(self, conversation: Conversation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
        pixels: Tensor = args[0] if args else kwargs["pixel_values"]
        rows, count = pixels.shape[0], self.path.unit_grid[0] * self.path.unit_grid[1]
        units = torch.arange(count, device=pixels.device).expand(rows, -1)
        return Encoded(
            self._next(conversation, rows), units, torch.ones(rows, count, device=pixels.device, dtype=torch.float32)
        )

    def _enter_layer(
        self, call: Encoded, index: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]] | None:
        stage, shorter = self.stages.get(index), hidden
        if stage is not None and stage.site.point is Point.BEFORE:
            shorter = self._run(call, index, stage, hidden)
        mask = kwargs.get("attention_mask")
        if mask is not None and call.patches is not None:
            return shorter, {**kwargs, "attention_mask": self._shorter_mask(call, mask, shorter.dtype)}
        return None if shorter is hidden else (shorter, kwargs)

    def _shorter_mask(self, call: Encoded, mask: Any, dtype: torch.dtype) -> Any:
        """What masks tokens of padding, for the tokens that are left; made once after each stage."""
        assert call.patches is not None
        if call.mask is None or call.mask[0] is not mask or call.mask[1] is not call.patches:
            prefix = self.path.prefix
            front = torch.arange(prefix, device=call.patches.device).expand(len(call.patches), -1)
            index = torch.cat([front, call.patches + prefix], dim=1)
            alive = Alive(index, torch.ones_like(index, dtype=torch.bool), (index.shape[1],) * len(index), index)
            full = prefix + self.path.patches
            call.mask = mask, call.patches, project_mask(mask, index, alive, 0, full, True, False, "", dtype)
        return call.mask[2]

    def _in_middle(self, index: int, stage: Stage, hidden: Tensor) -> Tensor:
        call = self._current()
        return hidden if call is None else self._run(call, index, stage, hidden)

    def _run(self, call: Encoded, index: int, stage: Stage, hidden: Tensor) -> Tensor:
        """Run a stage; returns the states [B, prefix + n', D] of what stays."""
        prefix, (rows, count) = self.path.prefix, call.units.shape
        height, width = self.path.unit_grid
        grid = (1, height, width) if count == height * width else None
        keep = self._kept(stage, count, grid)
        if keep == count and self.shortcut:
            everything = torch.arange(count, device=hidden.device).expand(rows, -1)
            call.selections.append((str(stage), Selection(everything), count))
            return hidden
        members = self.members.to(hidden.device, non_blocking=True)
        slots = members[call.units]  # [B, m, u * u] patches of each unit, then where they are now
        if call.patches is not None:
            where = torch.zeros(rows, self.path.patches, dtype=torch.long, device=hidden.device)
            order = torch.arange(call.patches.shape[1], device=hidden.device).expand(rows, -1)
            slots = where.scatter(1, call.patches, order).gather(1, slots.flatten(1)).view(slots.shape)
        tokens = hidden[:, prefix:]
        of_unit = take(tokens, slots.flatten(1), 1).view(rows, count, -1)
        view = TokenView(
            features=of_unit,
            coords=torch.stack([call.units * 0, call.units // width, call.units % width], dim=-1),
            grid=grid,
            sizes=call.sizes,
            group_keys=tuple(key for key, _ in call.rows),
            asks=tuple(asks for _, asks in call.rows) if any(asks for _, asks in call.rows) else (),
            observed={need: self._of_units(call.observed[(index, need)], slots) for need in stage.method.needs()},
        )
        selection = ask(stage, view, keep, self._check(index, hidden.device))
        self.checked.add(index)
        if selection.is_merge:
            merged = merge_values(of_unit, selection).view(rows, count * slots.shape[2], -1)
            tokens = tokens.scatter(1, slots.flatten(1)[..., None].expand_as(merged), merged)
        call.selections.append((str(stage), selection, count))
        call.sizes = selection.kept_sizes(call.sizes)
        call.units = call.units.gather(1, selection.kept)
        kept = take(slots.view(rows, count, -1), selection.kept, 1).flatten(1).sort(1).values
        call.patches = kept if call.patches is None else call.patches.gather(1, kept)
        call.states[call.patches.shape[1]] = call.patches
        if call.bias is not None or (stage.method.weighs_sizes and selection.is_merge):
            call.bias = self._bias(call, hidden.dtype)
        left = torch.cat([hidden[:, :prefix], take(tokens, kept, 1)], dim=1)
        # Some encoders have their states lie column by column in memory, which other kernels read, whose sums round otherwise.
        return left if left.shape != hidden.shape else torch.empty_like(hidden).copy_(left)

    def _of_units(self, values: Tensor, slots: Tensor) -> Tensor:
        """The mean of what was measured for each patch [B, n], for each unit."""
        return values.gather(1, slots.flatten(1)).view(slots.shape).mean(2)

    def _bias(self, call: Encoded, dtype: torch.dtype) -> Tensor:
        """log(size) of each patch that is left, 0 for prefix tokens. A patch of a unit stands for as many as its unit does."""
        assert call.patches is not None
        members = self.members.to(call.sizes.device, non_blocking=True)
        sizes = torch.ones(len(call.units), self.path.patches, device=call.sizes.device, dtype=torch.float32)
        of_patch = call.sizes.repeat_interleave(members.shape[1], dim=1)
        sizes = sizes.scatter(1, members[call.units].flatten(1), of_patch).gather(1, call.patches)
        return torch.nn.functional.pad(sizes.log(), (self.path.prefix, 0))[:, None, None].to(dtype)

    def _weigh(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Proportional attention: the log of sizes added to the scores, in the place of a mask or on top of it."""
        call = self._current()
        if call is None or call.bias is None:
            return None
        implementation = observe.implementation(module)
        if "flash" in implementation or "flex" in implementation:
            raise UnsupportedCombination(
                f"proportional=on adds log(size) to attention scores, which {implementation} does not take: load the vision "
                "encoder with sdpa or eager, or leave proportional out"
            )
        mask = kwargs.get("attention_mask")
        if mask is None:
            return args, {**kwargs, "attention_mask": call.bias}
        if mask.dtype == torch.bool:
            return args, {**kwargs, "attention_mask": call.bias.masked_fill(~mask, torch.finfo(call.bias.dtype).min)}
        return args, {**kwargs, "attention_mask": call.bias + mask}

    def _measuring(self, call: Encoded, layer: int, kwargs: dict[str, Any]) -> observe.Callback:
        def measure(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
            prefix = self.path.prefix
            for index, need in self.wanted[layer]:
                found = measured(need, query, key, mask, scaling, prefix)[:, prefix:]
                call.observed[(index, need)] = found if index is not None else self._of_all(call, found)

        return measure

    def _of_all(self, call: Encoded, values: Tensor) -> Tensor:
        """What was measured for each patch that is left [B, n, ...], for all of them, zeros for those that are gone."""
        if call.patches is None:
            return values
        index = call.patches.view(*call.patches.shape, *[1] * (values.ndim - 2)).expand_as(values)
        return values.new_zeros(len(values), self.path.patches, *values.shape[2:]).scatter(1, index, values)

    def _rows(self, call: Encoded) -> list[EncodedRow]:
        members = self.members.to(call.units.device, non_blocking=True)
        observed = {need: values[:, members].mean(2) for (index, need), values in call.observed.items() if index is None}
        return [
            EncodedRow(
                len(self.members),
                units,
                sizes,
                [(text, selection, row, count) for text, selection, count in call.selections],
                {need: values[row] for need, values in observed.items()},
            )
            for row, (units, sizes) in enumerate(zip(call.units, call.sizes, strict=True))
        ]

    def _lengthen(self, call: Encoded, output: Any) -> Any:
        if not call.changed:
            return None
        self._finished.set(call)
        for name, value in output.items():
            if isinstance(value, Tensor) and value.ndim == 3:
                output[name] = self._full(call, value)
            elif isinstance(value, tuple) and name == "hidden_states":
                output[name] = tuple(None if state is None else self._full(call, state) for state in value)
        return output

    def _full(self, call: Encoded, state: Tensor) -> Tensor:
        """A state with all its rows again, those of the tokens that are gone zero."""
        prefix, count = self.path.prefix, state.shape[1] - self.path.prefix
        if count == self.path.patches:
            return state
        index = call.states[count] + prefix
        full = state.new_zeros(state.shape[0], prefix + self.path.patches, state.shape[2])
        full[:, :prefix] = state[:, :prefix]
        return full.scatter(1, index[..., None].expand(-1, -1, state.shape[2]), state[:, prefix:])

    def _after_pooler(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Make each pooled token [rows, tokens, D] the mean of what is left of it, and say which ones stay."""
        call, canvas = self._finished.get(), self.path.pooled
        if call is None:
            return None
        assert canvas is not None
        if call.units.shape[1] == canvas.patches:
            call.emptied = torch.zeros(output.shape[:2], dtype=torch.bool, device=output.device)
            return None
        alive = ~call.gone(len(self.members), output.device)
        coverage = canvas.spread(alive[:, None].float())
        call.emptied = ~canvas.choose(coverage, call.units.shape[1])
        return (output.float() / coverage.clamp(min=1e-6)[..., None]).to(output.dtype)

    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        call = self._finished.get()
        self._finished.set(None)
        if call is None:
            return None
        gone = call.emptied if call.emptied is not None else call.gone(len(self.members), output.device)
        if output.ndim == 4:  # [B, h, w, D]
            gone = gone.view(output.shape[:3])
        rows = output.shape[1] - gone.shape[1]
        if rows:  # the class token is shown to the language model too
            gone = torch.cat([gone.new_zeros(len(gone), rows), gone], dim=1)
        return output.masked_fill(gone[..., None], 0.0 if self.path.mixes else torch.nan)


def _members(path: EncoderPath) -> Tensor:
    """[units, u * u] patches of each unit, in raster order."""
    (height, width), u = path.grid, path.unit
    patches = torch.arange(height * width, device="cpu").view(height // u, u, width // u, u)
    return patches.permute(0, 2, 1, 3).reshape(-1, u * u)
