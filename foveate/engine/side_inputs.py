"""What decoder layers get besides hidden states: positions, features added between layers, inputs per token, others' keys.

All of it arrives for every column of the call. Behind a stage only survivors are left, and their share is gathered here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.layout import Role
from foveate.engine import compat, forward
from foveate.engine.compiled import in_compiled_step, uncompiled
from foveate.engine.layer_inputs import project_rotary
from foveate.engine.projection import Alive, take
from foveate.engine.slots import SlotLayer
from foveate.families import Family

PreHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    names = ("hidden_states", "inputs_embeds", "input_ids")
    states: Tensor = args[0] if args else next(kwargs[name] for name in names if kwargs.get(name) is not None)
    return states


def _outside_compiled_steps(hook: PreHook) -> PreHook:
    """A hook that has nothing to do at a compiled decode step, and that torch.compile leaves its graph for otherwise."""
    outside = uncompiled(hook)

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        compiled = in_compiled_step(_states(args, kwargs), compat.cache_of(kwargs))
        return None if compiled else outside(module, args, kwargs)

    return run


def add_features(hidden: Tensor, features: Tensor, columns: Tensor, alive: Alive | None) -> Tensor:
    """Add features to the tokens they belong to, as the model does between two layers, bit for bit.

    Args:
        hidden: [B, n, D] states of the survivors, of all columns if `alive` is None.
        features: [N, D], one for each marked column, row by row.
        columns: [B, S] bool, the marked columns.
    """
    features, columns = features.to(hidden.device, hidden.dtype), columns.to(hidden.device)
    owner = (columns.flatten().cumsum(0) - 1).clamp(min=0).view(columns.shape)
    if alive is not None:
        owner, columns = take(owner, alive.index, 1), take(columns, alive.index, 1) & alive.valid
    return torch.where(columns[..., None], hidden + features[owner], hidden)


class SideInputs:
    """The hooks that keep side inputs in step with the survivors; a family without any gets none.

    Args:
        owner: the attachment, as the key of passes.
        family, config: say what side inputs there are.
        decoder: the language model without its head.
        first: the layer of the plan's first stage.
        shortens: whether stages drop tokens; masked plans shorten nothing.
    """

    def __init__(self, owner: object, family: Family, config: Any, decoder: nn.Module, first: int, shortens: bool) -> None:
        self.owner, self.decoder, self.first, self.shortens = owner, decoder, first, shortens
        self.stacked = family.stacked_features(config)
        self.sources: Mapping[int, int] = family.shared_keys(config)
        layer = next(decoder.get_submodule("layers").children())
        arguments = list(inspect.signature(layer.forward).parameters)
        self.token_inputs = {name: arguments.index(name) for name in family.token_inputs if name in arguments}

    def install(self) -> list[RemovableHandle]:
        """Register what runs in front of the decoder."""
        if not self.shortens or not (self.stacked or self.sources):
            return []
        hook = _outside_compiled_steps(self._before_decoder)
        return [self.decoder.register_forward_pre_hook(hook, with_kwargs=True)]

    def around(self, index: int, own: PreHook) -> list[PreHook]:
        """The pre-hooks of a decoder layer in order; `own` is the one that runs stages and projects masks."""
        hooks = [self._borrow(index, self.sources[index]) if index in self.sources else own]
        if index in self.sources.values():
            hooks.append(self._lend(index))
        if self.shortens and self.stacked is not None and self.first < index <= self.stacked.layers:
            hooks.insert(0, _outside_compiled_steps(partial(self._add_features, index - 1)))
        if self.shortens and self.token_inputs:
            hooks.append(_outside_compiled_steps(self._gather_inputs))
        return hooks

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take over what the model's own loop would do to columns that are gone by then."""
        running = forward.current(self.owner)
        if running is None or not running.chooses:
            return None
        changed = dict(kwargs)
        if self.stacked is not None and changed.get(self.stacked.features) is not None:
            features = changed[self.stacked.features]
            running.shared.stacked = (features, changed[self.stacked.columns])
            changed[self.stacked.features] = features[: self.first]
        last = changed.get("logits_to_keep")
        if self.sources and isinstance(last, int) and last > 0:
            # Layers that borrow keys may be run for the last columns alone. Those must be the last survivors too.
            roles = running.left.layout.roles[:, -last:]
            if bool(((roles == int(Role.VISUAL)) | (roles == int(Role.PAD))).any()):
                changed["logits_to_keep"] = 0
        return args, changed

    def _add_features(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the features that belong after layer `number`, in front of the next one and its stage."""
        running = forward.current(self.owner)
        if running is None or running.shared.stacked is None:
            return None
        features, columns = running.shared.stacked
        if number >= len(features):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = add_features(hidden, features[number], columns, running.alive_on(hidden.device))
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _gather_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Bring a layer's other inputs per token to the survivors."""
        running = forward.current(self.owner)
        if running is None or running.survivors is None or running.survivors.alive is None:
            return None
        positional, named = list(args), dict(kwargs)
        for name, place in self.token_inputs.items():
            value = named.get(name) if name in named else positional[place] if place < len(positional) else None
            alive = None if value is None else running.alive_on(value.device)
            if value is None or alive is None or value.shape[1] != running.queries:
                continue  # none at all, or cut to the last columns already
            value = take(value, alive.index, 1)
            if name in named:
                named[name] = value
            else:
                positional[place] = value
        return tuple(positional), named

    def _lend(self, index: int) -> PreHook:
        """Remember the mask of a layer whose keys others read."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask: Any = kwargs.get("attention_mask")
            cache: Any = compat.cache_of(kwargs)
            if in_compiled_step(_states(args, kwargs), cache):
                if isinstance(cache.layers[index], SlotLayer):
                    cache.layers[index].lent_mask = mask  # a compiled step has no pass
            else:
                note(mask)

        @uncompiled
        def note(mask: Any) -> None:
            running = forward.current(self.owner)
            if running is not None:
                running.shared.masks[index] = mask

        return run

    def _borrow(self, index: int, source: int) -> PreHook:
        """A layer with the keys of another needs the mask that was made for those keys, for the queries it has."""
        outside = uncompiled(partial(self._borrow_in_pass, source))
        is_last = index == max(layer for layer, lender in self.sources.items() if lender == source)

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cache: Any = compat.cache_of(kwargs)
            if not in_compiled_step(_states(args, kwargs), cache):
                return outside(args, kwargs)
            stored = cache.layers[source]
            if not isinstance(stored, SlotLayer):
                return None
            kwargs = {**kwargs, "attention_mask": stored.lent_mask}
            if is_last:
                stored.lent_mask = None  # the next step finds what this one found, so that it need not be compiled anew
            return args, kwargs

        return run

    def _borrow_in_pass(self, source: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running = forward.current(self.owner)
        if running is None or source not in running.shared.masks:
            return None
        hidden, mask = args[0] if args else kwargs["hidden_states"], running.shared.masks[source]
        alive = running.alive_on(hidden.device)
        cut = _columns(kwargs.get("position_embeddings")) < running.queries
        if cut and isinstance(mask, Tensor) and mask.ndim == 4:
            mask = mask[:, :, -hidden.shape[1] :]
        changed = {**kwargs, "attention_mask": mask}
        if alive is not None:
            changed["position_ids"] = None
            if not cut:
                project_rotary(running, alive, changed)
        return args, changed


def _columns(embeddings: Any) -> int:
    source: Tensor = embeddings[0] if isinstance(embeddings, (tuple, list)) else embeddings
    return source.shape[-2]
