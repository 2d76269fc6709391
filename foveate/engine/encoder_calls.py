"""What the hooks around every vision encoder share: which call of it is running, what is measured for its stages, and what is
handed to the conversation after it. How tokens are laid out, and so how a stage shortens them, is each encoder's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import EncoderPath, PackedPath
from foveate.core.layout import Layout
from foveate.core.plan import Stage
from foveate.core.view import EncoderAttention, EncoderKeys, Observation
from foveate.engine import attention_rows, compat, forward, layout, observe
from foveate.engine.conversation import Conversation, open_conversation
from foveate.engine.encoder_state import EncodedRow, EncoderCall

_Path = TypeVar("_Path", EncoderPath, PackedPath)
_Call = TypeVar("_Call", bound=EncoderCall)

_calls: ContextVar[tuple[tuple[object, EncoderCall], ...]] = ContextVar("foveate_encoder_calls", default=())


class EncoderCallHooks(ABC, Generic[_Path, _Call]):
    """The hooks around a vision encoder.

    Args:
        owner: the attachment.
        model: the top model.
        path: where its encoder is.
        stages: the plan's encoder stages by layer.
        shortcut: skip stages that keep everything.
        layout_of: the layout of a conversation's prompt, as far as it is known.
        asked: what stages of the decoder ask of the encoder.

    Attributes:
        wanted: by layer whose attention is measured, what for: the layer of a stage, or None for stages of the decoder.
    """

    def __init__(
        self,
        owner: object,
        model: nn.Module,
        path: _Path,
        stages: Mapping[int, Stage],
        shortcut: bool,
        layout_of: Callable[[Conversation], Layout | None],
        asked: Sequence[Observation] = (),
    ) -> None:
        self.owner, self.stages, self.shortcut = owner, stages, shortcut
        self.path: _Path = path
        self.layout_of = layout_of
        self.towers = {tower: compat.encoder_layers(tower) for tower in map(model.get_submodule, path.towers)}
        self.wanted: dict[int, list[tuple[int | None, Observation]]] = defaultdict(list)
        for index, stage in stages.items():
            measured_there = [(index, need) for need in stage.method.needs() if not need.given]
            if measured_there:
                self.wanted[self._probed_layer(index)] += measured_there
        for need in asked:
            assert isinstance(need, EncoderAttention | EncoderKeys)
            self.wanted[path.layer_at(need.depth)].append((None, need))
        self.checked: set[int] = set()  # layers whose stage has answered well once

    # What each encoder says for itself.

    @abstractmethod
    def _begin(self, conversation: Conversation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """A call of a tower that begins with these arguments."""

    @abstractmethod
    def _enter_layer(
        self, call: _Call, index: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]] | None:
        """States and other arguments that a layer gets instead of its own; None to leave them."""

    @abstractmethod
    def _measuring(self, call: _Call, layer: int, kwargs: dict[str, Any]) -> observe.Callback:
        """What measures what is wanted of a layer when its attention is called with these arguments."""

    @abstractmethod
    def _rows(self, call: _Call) -> list[EncodedRow]:
        """What is left of each image, crop or frame."""

    @abstractmethod
    def _lengthen(self, call: _Call, output: Any) -> Any:
        """A tower's output with its full number of rows again; None to leave it."""

    # Which call is running.

    def install(self) -> list[RemovableHandle]:
        """Register every hook."""
        handles = []
        for tower in self.towers:
            handles.append(tower.register_forward_pre_hook(self._before_tower, with_kwargs=True))
            handles.append(tower.register_forward_hook(self._after_tower, always_call=True))
        for layer, attention in self._probed():
            handles.append(attention.register_forward_pre_hook(self._before_attention(layer), with_kwargs=True))
            handles.append(attention.register_forward_hook(self._after_attention, always_call=True))
        return handles

    def settle(self) -> None:
        """Forget a call that was interrupted."""
        self._leave()
        for _, attention in self._probed():
            observe.disarm(attention)

    def _conversation(self) -> Conversation | None:
        """The conversation that this call belongs to; without one somebody wants plain features."""
        running = forward.current(self.owner)
        return running.conversation if running is not None else open_conversation(self.owner)

    def _current(self) -> _Call | None:
        return cast("_Call | None", next((call for owner, call in reversed(_calls.get()) if owner is self.owner), None))

    def _leave(self) -> None:
        _calls.set(tuple((owner, call) for owner, call in _calls.get() if owner is not self.owner))

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._leave()
        conversation = self._conversation()
        if conversation is not None:
            _calls.set((*_calls.get(), (self.owner, self._begin(conversation, args, kwargs))))

    def _next(self, conversation: Conversation, rows: int) -> list[tuple[int, bool]]:
        """The next `rows` images, crops or frames of a conversation, as `EncoderCall` holds them."""
        return layout.encoder_rows(self.layout_of(conversation), len(conversation.encodings.rows), rows)

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._current()
            if call is None:
                return None
            if len(args) > 1:  # the one thing that encoders hand to their layers without its name
                args, kwargs = args[:1], {**kwargs, "attention_mask": args[1]}
            changed = self._enter_layer(call, index, args[0] if args else kwargs["hidden_states"], kwargs)
            if changed is None:
                return None
            hidden, kwargs = changed
            return ((hidden,), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return run

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, conversation = self._current(), self._conversation()
        self._leave()
        if call is None or conversation is None or output is None:
            return None
        conversation.encodings.rows += self._rows(call)
        return self._lengthen(call, output)

    # What stages choose by, and how many stay.

    def _probed_layer(self, index: int) -> int:
        """The layer whose attention a stage in front of layer `index` ranks by."""
        return index - 1

    def _probed(self) -> list[tuple[int, nn.Module]]:
        """The layers that are measured and their attention modules."""
        return [
            (layer, layers[layer].get_submodule(self.path.attention))
            for layers in self.towers.values()
            for layer in self.wanted
        ]

    def _before_attention(self, layer: int) -> Callable[..., None]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self._current()
            if call is not None:
                observe.arm(module, self._measuring(call, layer, kwargs))

        return run

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        observe.disarm(module)

    def _kept(self, stage: Stage, units: int, grid: tuple[int, int, int] | None) -> int:
        """Units that stay. A count counts patches, as published numbers do; a ratio is the same of both."""
        if stage.budget is None or stage.budget.count is None:
            return stage.kept_of(units, grid)
        return stage.kept_of(units * self.path.unit**2, grid) // self.path.unit**2

    def _check(self, index: int, device: torch.device) -> bool:
        """Whether to read the values of a stage's answer: always, or once where reading waits for the device."""
        return index not in self.checked or device.type == "cpu"


def measured(need: Observation, query: Tensor, key: Tensor, mask: Any, scaling: float | None, prefix: int = 0) -> Tensor:
    """What a stage asked for, of each token: [B, N] fp32, or [B, N, D] of keys.

    Args:
        need: `Importance`, `EncoderAttention` or `EncoderKeys`.
        query, key: [B, H, N, D], of the keys fewer heads if they share them.
        mask, scaling: as the attention function gets them.
        prefix: tokens in front of the patches, the first of which is a class token.
    """
    with torch.no_grad():
        if isinstance(need, EncoderKeys):
            return key.float().mean(1)
        if isinstance(need, EncoderAttention) and need.rows == "class" and prefix:
            query, mask = query[:, :, :1], mask if mask is None else mask[:, :, :1]
        return attention_rows.column_means(query, key, mask, scaling)
