"""Stages inside the vision encoder. It really gets shorter; what leaves it has its full number of rows again.

Rows of tokens that are gone pass the projector as zeros and leave it as NaN: from there on nobody counts them, and whatever
transformers does between the projector and the prompt (unpadding, splitting, scattering into placeholders) carries the mark
along. In front of the first decoder layer the marks are read once and the columns dropped (`entrance.enter`). Where neighbours
are mixed behind the projector, zeros leave it instead of marks, and the entrance knows from the rows what is left of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
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
from foveate.core.view import Importance, Keys, Observation, TokenView
from foveate.engine import compat, conversation, forward, layout, observe
from foveate.engine.middle import Middle
from foveate.engine.prefill import ask
from foveate.engine.projection import take
from foveate.errors import UnsupportedCombination


@dataclass(frozen=True)
class EncodedRow:
    """One image, crop or frame that passed the encoder.

    Attributes:
        count: units at first.
        units: [m] long, numbers of those that are left, ascending, in raster order.
        sizes: [m] fp32, how many original units each of them stands for.
        stages: (text of the stage, its answer, row of this one in it, units it chose from), in order.
    """

    count: int
    units: Tensor
    sizes: Tensor
    stages: list[tuple[str, Selection, int, int]]


@dataclass
class Encoded:
    """One call of the encoder.

    Attributes:
        rows: rows of the batch: images, crops or frames.
        keys: a number for each, the same alone and in company.
        device: where its tokens are.
        units: [B, m] units that are left, ascending; all of them at first.
        sizes: [B, m] fp32, how many original units each stands for.
        patches: [B, n] patches that are left, ascending; None while all are.
        bias: [B, 1, 1, prefix + n] log of the size of each key, where attention is to weigh sizes; else None.
        states: by number of patches, which ones a hidden state of that length holds.
        selections: (text of the stage, its answer, units it chose from), in order.
        observed: what was measured, by the layer of the stage that asked.
        emptied: [B, n] bool, tokens that are gone where the encoder's output was pooled; None where it was not.
    """

    rows: int
    keys: tuple[int, ...]
    device: torch.device
    units: Tensor
    sizes: Tensor
    patches: Tensor | None = None
    bias: Tensor | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    selections: list[tuple[str, Selection, int]] = field(default_factory=list)
    observed: dict[tuple[int, Observation], Tensor] = field(default_factory=dict)
    emptied: Tensor | None = None

    def gone(self, count: int, device: torch.device) -> Tensor:
        """[B, count] bool, units that are not left."""
        gone = torch.ones(self.rows, count, dtype=torch.bool, device=device)
        return gone.scatter(1, self.units.to(device), False)

    @property
    def changed(self) -> bool:
        """Whether a token is gone, or was sent through gathering to prove that this changes nothing."""
        return self.patches is not None


_calls: ContextVar[tuple[tuple[object, Encoded], ...]] = ContextVar("foveate_encoder_calls", default=())


class EncoderHooks:
    """The hooks around a vision encoder.

    Args:
        owner: the attachment.
        model: the top model.
        path: where its encoder is.
        stages: the plan's encoder stages by layer.
        texts: canonical text of each stage, for the trace.
        shortcut: skip stages that keep everything.
        layout_of: the layout of a conversation's prompt, as far as it is known.
    """

    def __init__(
        self,
        owner: object,
        model: nn.Module,
        path: EncoderPath,
        stages: Mapping[int, Stage],
        texts: Mapping[Stage, str],
        shortcut: bool,
        layout_of: Callable[[conversation.Conversation], Layout | None],
    ) -> None:
        self.owner, self.path, self.stages, self.texts, self.shortcut = owner, path, stages, texts, shortcut
        self.layout_of = layout_of
        self.towers = {tower: compat.encoder_layers(tower) for tower in map(model.get_submodule, path.towers)}
        self.projector = model.get_submodule(path.projector)
        self.pooler = model.get_submodule(path.pooler) if path.pooler else None
        self.members = _members(path)
        self.checked: set[int] = set()
        self.middles = [
            Middle(layers[index - 1], *path.middle, partial(self._in_middle, index, stage))
            for layers in self.towers.values()
            for index, stage in stages.items()
            if stage.site.point is Point.MID and path.middle is not None
        ]
        self._finished: ContextVar[Encoded | None] = ContextVar("foveate_encoded", default=None)

    def install(self) -> list[RemovableHandle]:
        """Register every hook."""
        handles = [self.projector.register_forward_hook(self._after_projector)]
        if self.pooler is not None:
            handles.append(self.pooler.register_forward_hook(self._after_pooler))
        for tower, layers in self.towers.items():
            handles.append(tower.register_forward_pre_hook(self._before_tower, with_kwargs=True))
            handles.append(tower.register_forward_hook(self._after_tower, always_call=True))
            for index, stage in self.stages.items():
                if stage.site.point is Point.BEFORE:
                    handles.append(layers[index].register_forward_pre_hook(self._before_layer(index, stage), with_kwargs=True))
            handles += self._weighed(layers)
        for middle in self.middles:
            handles += middle.install()
        for index, attention in self._probed():
            handles.append(attention.register_forward_pre_hook(self._before_attention(index, self.stages[index])))
            handles.append(attention.register_forward_hook(self._after_attention, always_call=True))
        return handles

    def _weighed(self, layers: nn.ModuleList) -> list[RemovableHandle]:
        """Hooks on the attention of every layer from the first stage on that makes attention weigh sizes."""
        first = min((index for index, stage in self.stages.items() if stage.method.weighs_sizes), default=len(layers))
        return [
            layer.get_submodule(self.path.attention).register_forward_pre_hook(self._weigh, with_kwargs=True)
            for layer in layers[first:]
        ]

    def _probed(self) -> list[tuple[int, nn.Module]]:
        """For each stage that ranks by attention its layer and the attention module of the layer below."""
        return [
            (index, layers[index - 1].get_submodule(self.path.attention))
            for layers in self.towers.values()
            for index, stage in self.stages.items()
            if stage.method.needs()
        ]

    def settle(self) -> None:
        """Forget a call that was interrupted."""
        self._leave()
        self._finished.set(None)
        for _, attention in self._probed():
            observe.disarm(attention)
        for middle in self.middles:
            middle.settle()

    def _talk(self) -> conversation.Conversation | None:
        """The conversation that this call belongs to; without one somebody wants plain features."""
        running = forward.current(self.owner)
        return running.conversation if running is not None else conversation.current(self.owner)

    def _current(self) -> Encoded | None:
        return next((call for owner, call in reversed(_calls.get()) if owner is self.owner), None)

    def _leave(self) -> None:
        _calls.set(tuple((owner, call) for owner, call in _calls.get() if owner is not self.owner))

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._leave()
        self._finished.set(None)
        talk = self._talk()
        if talk is None:
            return
        pixels: Tensor = args[0] if args else kwargs["pixel_values"]
        count = self.path.unit_grid[0] * self.path.unit_grid[1]
        units = torch.arange(count, device=pixels.device).expand(pixels.shape[0], -1)
        sizes = torch.ones(pixels.shape[0], count, device=pixels.device)
        keys = layout.encoder_keys(self.layout_of(talk), len(talk.encoded), pixels.shape[0])
        _calls.set((*_calls.get(), (self.owner, Encoded(pixels.shape[0], keys, pixels.device, units, sizes))))

    def _before_layer(self, index: int, stage: Stage) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._current()
            if call is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            shorter = self._run(call, index, stage, hidden)
            if shorter is hidden:
                return None
            return ((shorter, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": shorter})

        return run

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
            call.selections.append((self.texts[stage], Selection(everything), count))
            return hidden
        members = self.members.to(hidden.device)
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
            group_keys=call.keys,
            observed={need: self._of_units(call.observed[(index, need)], slots) for need in stage.method.needs()},
        )
        check = index not in self.checked or hidden.device.type == "cpu"
        selection = ask(stage, view, keep, check)
        self.checked.add(index)
        if selection.is_merge:
            merged = merge_values(of_unit, selection).view(rows, count * slots.shape[2], -1)
            tokens = tokens.scatter(1, slots.flatten(1)[..., None].expand_as(merged), merged)
        call.selections.append((self.texts[stage], selection, count))
        call.sizes = selection.kept_sizes(call.sizes)
        call.units = call.units.gather(1, selection.kept)
        kept = take(slots.view(rows, count, -1), selection.kept, 1).flatten(1).sort(1).values
        call.patches = kept if call.patches is None else call.patches.gather(1, kept)
        call.states[call.patches.shape[1]] = call.patches
        if call.bias is not None or (stage.method.weighs_sizes and selection.is_merge):
            call.bias = self._bias(call, hidden.dtype)
        return torch.cat([hidden[:, :prefix], take(tokens, kept, 1)], dim=1)

    def _kept(self, stage: Stage, units: int, grid: tuple[int, int, int] | None) -> int:
        """Units that stay. A count counts patches, as published numbers do; a ratio is the same of both."""
        if stage.budget is None or stage.budget.count is None:
            return stage.kept_of(units, grid)
        return stage.kept_of(units * self.path.unit**2, grid) // self.path.unit**2

    def _of_units(self, measured: Tensor, slots: Tensor) -> Tensor:
        """What was measured for each patch [B, n] or [B, n, D], for each unit: the mean, or all of it side by side."""
        rows, count, size = slots.shape
        if measured.ndim == 2:
            return measured.gather(1, slots.flatten(1)).view(rows, count, size).mean(2)
        return take(measured, slots.flatten(1), 1).view(rows, count, -1)

    def _bias(self, call: Encoded, dtype: torch.dtype) -> Tensor:
        """log(size) of each patch that is left, 0 for prefix tokens. A patch of a unit stands for as many as its unit does."""
        assert call.patches is not None
        members = self.members.to(call.sizes.device)
        sizes = torch.ones(call.rows, self.path.patches, device=call.sizes.device)
        of_patch = call.sizes.repeat_interleave(members.shape[1], dim=1)
        sizes = sizes.scatter(1, members[call.units].flatten(1), of_patch).gather(1, call.patches)
        return torch.nn.functional.pad(sizes.log(), (self.path.prefix, 0))[:, None, None].to(dtype)

    def _weigh(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Proportional attention: the log of sizes added to the scores, in the place of a mask, which encoders do not have."""
        call = self._current()
        if call is None or call.bias is None:
            return None
        implementation = observe.implementation(module)
        if "flash" in implementation or "flex" in implementation:
            raise UnsupportedCombination(
                f"proportional=on adds log(size) to attention scores, which {implementation} does not take: load the vision "
                "encoder with sdpa or eager, or leave proportional out"
            )
        return args, {**kwargs, "attention_mask": call.bias}

    def _before_attention(self, index: int, stage: Stage) -> Callable[..., None]:
        def run(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = self._current()
            if call is None:
                return

            def measure(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
                with torch.no_grad():
                    for need in stage.method.needs():
                        if isinstance(need, Importance):
                            found = observe.column_means(query, key, mask, scaling)[:, self.path.prefix :]
                        else:
                            assert isinstance(need, Keys)
                            found = key[:, :, self.path.prefix :].float().mean(1)
                        call.observed[(index, need)] = found

            observe.arm(module, measure)

        return run

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        observe.disarm(module)

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, talk = self._current(), self._talk()
        self._leave()
        if call is None or talk is None or output is None:
            return None
        for row in range(call.rows):
            stages = [(text, selection, row, count) for text, selection, count in call.selections]
            talk.encoded.append(EncodedRow(len(self.members), call.units[row], call.sizes[row], stages))
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
        rows = output.shape[1] - gone.shape[1]
        if rows:  # the class token is shown to the language model too
            gone = torch.cat([gone.new_zeros(call.rows, rows), gone], dim=1)
        return output.masked_fill(gone[..., None], 0.0 if self.path.mixes else torch.nan)


def _members(path: EncoderPath) -> Tensor:
    """[units, u * u] patches of each unit, in raster order."""
    (height, width), u = path.grid, path.unit
    patches = torch.arange(height * width).view(height // u, u, width // u, u)
    return patches.permute(0, 2, 1, 3).reshape(-1, u * u)
