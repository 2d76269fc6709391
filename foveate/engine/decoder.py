"""The hooks around the decoder's layers: run a stage, and bring masks, positions and the cache to the surviving tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.plan import Stage
from foveate.engine import compat, entrance, forward, labels, prefill
from foveate.engine.cache_kinds import reserves, slot_layer
from foveate.engine.compiled import in_compiled_step, uncompiled
from foveate.engine.forward import Pass
from foveate.engine.gate import Gate
from foveate.engine.instruct import run_instruct_stage
from foveate.engine.layer_inputs import NEXT_COLUMN, announce, compiled_step_mask, project_rotary, state_mask
from foveate.engine.notices import say_once
from foveate.engine.projection import project_mask, scatter_back
from foveate.engine.question import matching_text
from foveate.engine.slots import SlotLayer

# Stands among layers that were checked for what the encoder's stages left.
_ENTRANCE = -1
_ON_ITS_OWN = (
    "the language model was called on its own, where nobody says which of its tokens are a picture's: nothing was pruned; call "
    "the whole model"
)


def _waits(device: torch.device) -> bool:
    return device.type != "cpu"


def _with_states(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a layer's call with other hidden states."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


class DecoderHooks:
    """What runs before and after the decoder layers.

    Args:
        owner: the attachment, as the key of passes.
        decoder: the language model without its head.
        stages: the plan's stages by decoder layer.
        shortcut: skip stages that keep everything.
        masks: whether the plan's stage hides tokens instead of dropping them.
        marked: whether stages inside the encoder leave columns empty.
        mixes: whether marks of empty columns could not reach the prompt (`EncoderPath.mixes`).
        gate: what decides which generated tokens are stored, if the plan has such a stage.
        instructs: stages on the instruction's text by decoder layer.
        stateful: layers without attention.
        moved: layers whose stage above asks how far states move in them.
        matches: whether a stage asks for the text that matches the visual tokens as they enter the decoder.
    """

    def __init__(
        self,
        owner: object,
        decoder: nn.Module,
        stages: Mapping[int, Stage],
        shortcut: bool,
        masks: bool,
        marked: bool = False,
        mixes: bool = False,
        gate: Gate | None = None,
        instructs: Mapping[int, Stage] = MappingProxyType({}),
        stateful: frozenset[int] = frozenset(),
        moved: frozenset[int] = frozenset(),
        matches: bool = False,
    ) -> None:
        self.owner, self.decoder, self.stages = owner, decoder, stages
        self.shortcut, self.masks, self.marked, self.mixes, self.gate = shortcut, masks, marked, mixes, gate
        self.instructs, self.stateful, self.moved, self.matches = instructs, stateful, moved, matches
        self.checked: set[int] = set()  # layers whose stage has answered well once, and the entrance

    @property
    def _implementation(self) -> str:
        name: str = self.decoder.config._attn_implementation  # type: ignore[union-attr, assignment]
        return name

    def before_layer(self, index: int) -> Callable[..., Any]:
        """The pre-hook of a layer."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if self.gate is None and in_compiled_step(hidden, compat.cache_of(kwargs)):
                return self._compiled_step(index, hidden, args, kwargs)
            return self._layer(index, hidden, args, kwargs)

        return run

    @uncompiled
    def _layer(self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running = forward.current(self.owner)
        if running is None:
            if hidden.shape[1] > 1:
                say_once(self.owner, _ON_ITS_OWN)
            return None
        if self.masks:
            return self._hide(running, index, hidden, args, kwargs)
        return self._shorten(running, index, hidden, args, kwargs)

    def _shorten(self, running: Pass, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = compat.cache_of(kwargs)
        mask = kwargs.get("attention_mask")
        stored = cache.layers[index] if cache is not None and index < len(cache.layers) else None
        gate = self.gate if self.gate is not None and self.gate.concerns(running, index, stored) else None
        if running.survivors is None and running.queries == 1 and mask is None and gate is None:
            # A decode step whose slots all count: nothing to project. This path runs for every token and layer.
            if isinstance(stored, SlotLayer):
                if stored.all_valid:
                    stored.announce(NEXT_COLUMN, hidden.shape[0], hidden.device)
                    return None
            else:
                return None
        if self.marked and index == 0 and running.chooses:
            hidden = entrance.enter(running, hidden, self.mixes, self._check(_ENTRANCE, hidden.device))
            self.checked.add(_ENTRANCE)
        stage = self.stages.get(index)
        if stage is not None and running.chooses:
            check = self._check(index, hidden.device)
            hidden = prefill.run_stage(running, stage, index, hidden, self.shortcut, check)
            self.checked.add(index)
        if self.instructs.get(index) in running.instructions:
            hidden = run_instruct_stage(running, self.instructs[index], index, hidden)
        if gate is not None and (index == gate.layer or gate.has_nothing_to_judge(running)):
            hidden = gate.decide(running, hidden)
        if index in self.moved and running.chooses:
            running.shared.entered[index] = hidden.detach()
        if index == 0 and self.matches and running.chooses:
            running.shared.matched = matching_text(running, hidden)
        alive = running.alive_on(hidden.device)
        gated = gate is not None and running.answers is not None and running.answers.rejected is not None
        lean = self.gate is not None and index >= self.gate.layer and reserves(stored)
        if alive is None and not isinstance(stored, SlotLayer) and not gated and not lean:
            # Nothing is gone, but what stands between two patches may have been laid out anew after the encoder.
            return _with_states(hidden, args, kwargs)
        if index in self.stateful:
            changed = {**kwargs, "attention_mask": state_mask(running, hidden, mask), "position_ids": None}
            return _with_states(hidden, args, changed)
        slots = None if cache is None else slot_layer(cache, index)
        if self.gate is not None and lean and slots is not None:
            self.gate.expect(running, slots)
        if alive is not None:
            project_rotary(running, alive, kwargs)
            # Layers use position ids only to detect packed sequences, and gaps would look like packing to flash.
            kwargs["position_ids"] = None
        if gate is not None and gated:
            kwargs["attention_mask"] = gate.project(running, slots, hidden, mask, self._implementation)
        else:
            kwargs["attention_mask"] = announce(running, slots, hidden, mask, self._implementation)
        return _with_states(hidden, args, kwargs)

    def _check(self, index: int, device: torch.device) -> bool:
        """Whether to read the values of a stage's answer: always, or once where reading waits for the device."""
        return index not in self.checked or not _waits(device)

    def _compiled_step(self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A decode step under torch.compile: only a pruned layer's mask has to be brought to its slots."""
        slots = compat.cache_of(kwargs).layers[index]
        if not isinstance(slots, SlotLayer):
            return None
        mask = compiled_step_mask(slots, hidden, kwargs["attention_mask"], self._implementation)
        return args, {**kwargs, "attention_mask": mask}

    def _hide(self, running: Pass, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """effect=mask: hide key columns from the layers after the stage. Nothing is shortened."""
        if not running.chooses:
            return None
        keys = running.past + running.queries
        stage = self.stages.get(index)
        if stage is not None:
            check = self._check(index, hidden.device)
            prefill.choose_hidden(running, stage, index, hidden.shape[0], keys, check)
        gone = running.left.hidden
        if gone is None:
            return None
        mask = kwargs.get("attention_mask")

        def make() -> Any:
            # A hidden column is, for the mask, a hole.
            positions = torch.arange(keys, device=hidden.device).masked_fill(gone.to(hidden.device), -1)
            if isinstance(mask, Tensor):
                positions = positions[:, keys - mask.shape[-1] :]
            return project_mask(
                mask, positions, None, running.past, running.queries, False, False, self._implementation, hidden.dtype
            )

        kwargs["attention_mask"] = running.shared.once(("hidden",), mask, make)
        return args, kwargs

    def after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The hook after the decoder: states go back to their columns."""
        if self.gate is None and in_compiled_step(output[0], compat.cache_in(output)):
            return None
        return self._scatter(output)

    @uncompiled
    def _scatter(self, output: Any) -> Any:
        running = forward.current(self.owner)
        if running is None or running.survivors is None:
            return None
        hidden = output[0]
        alive = running.alive_on(hidden.device)
        if alive is None or hidden.shape[1] != alive.index.shape[1]:
            return None
        full = scatter_back(hidden, alive, running.queries)
        labels.ignore_lost(running)
        if isinstance(output, tuple):
            return (full, *output[1:])
        output.last_hidden_state = full
        captured = getattr(output, "hidden_states", None)
        if captured is not None:
            # Entry 0 is what enters layer 0, entry i what leaves layer i - 1; entries nobody asked for are None.
            output.hidden_states = tuple(
                _at_full_length(running, states, max(entry - 1, 0)) for entry, states in enumerate(captured)
            )
        return output


def _at_full_length(running: Pass, states: Tensor | None, layer: int) -> Tensor | None:
    alive = running.left.alive_at(layer)
    if states is None or alive is None:
        return states
    return scatter_back(states, alive.to(states.device), running.queries)
