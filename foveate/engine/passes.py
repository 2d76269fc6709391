"""The hooks around the model and its base: they open and close the pass of each call, and find what there is to choose from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.layout import Role
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.engine import belonging, compat, forward, labels
from foveate.engine.activity import Activity
from foveate.engine.cache_kinds import check_gated_cache, stored_bytes
from foveate.engine.carrying import NO_COPY
from foveate.engine.compiled import in_compiled_step, uncompiled
from foveate.engine.conversation import Conversation
from foveate.engine.forward import Answers, Pass
from foveate.engine.gate import Gate, answer_numbers
from foveate.engine.instruct import Instructions
from foveate.engine.notices import say_once
from foveate.engine.prompts import Prompts, shift, source_of
from foveate.engine.refusals import OPEN_A_CONVERSATION, Refusals
from foveate.engine.survivors import Survivors
from foveate.errors import AttachError, UnsupportedCombination

_NO_PROMPT_END = (
    "a bare call does not say where the prompt ends and the answer begins: run inside generate(), or inside "
    "attachment.conversation(prompt_length=n)"
)
_EMBEDDINGS_ONLY = (
    "this call has inputs_embeds without input_ids, and no placeholder among them: if pictures are merged into them already, "
    "nothing of them was pruned; pass input_ids and pixel values"
)


@dataclass(frozen=True)
class Passes:
    """Opens and closes the passes of one attached model.

    Args:
        owner: the attachment, as the key of passes and conversations.
        model, base: the top model and the module that merges text and media.
        plan: what is attached.
        gate: its step stage, if it has one.
        prompts, refusals, instructions: find layouts, say no, and find what stages on the instruction judge.
        modules: of learned methods, by their stage.
        activity: where running calls are noted.
        on_media: called with the conversation when a pass finds media.
        trains: keep every token, to train learned methods.
    """

    owner: object
    model: nn.Module
    base: nn.Module
    plan: Plan
    gate: Gate | None
    prompts: Prompts
    refusals: Refusals
    instructions: Instructions
    modules: Mapping[Stage, nn.Module]
    activity: Activity
    on_media: Callable[[Conversation], None]
    trains: bool

    def install(self) -> list[RemovableHandle]:
        """Register the hooks."""
        of_model, of_base = _arguments(self.model), _arguments(self.base)
        # Bound to this object, which says no to being pickled with the model.
        before, after = partial(self._before_model, of_model), partial(self._after_model, of_model)
        opens, closes = partial(self._before_base, of_base), partial(self._after_base, of_base)
        return [
            self.model.register_forward_pre_hook(before, with_kwargs=True),
            self.model.register_forward_hook(after, with_kwargs=True, always_call=True),
            self.base.register_forward_pre_hook(opens, with_kwargs=True),
            self.base.register_forward_hook(closes, with_kwargs=True, always_call=True),
        ]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AttachError(NO_COPY)

    def _before_model(self, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        has_labels = _named(names, args, kwargs).get("labels") is not None
        return _send_labels(names, args, kwargs) if has_labels else None

    def _after_model(
        self, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if _named(names, args, kwargs).get("labels") is not None:
            _take_labels()  # of a call that failed before its base took them

    def _before_base(self, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _named(names, args, kwargs)
        source = source_of(call)
        # Without a source the model itself says what is missing. A compiled decode step finds what it needs in the cache.
        if source is not None and not self._compiled(source, call):
            self._open(call, source)

    def _after_base(
        self, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        call = _named(names, args, kwargs)
        source = source_of(call)
        if source is not None and not self._compiled(source, call):
            self._close(output)

    def _compiled(self, source: Tensor, call: Mapping[str, Any]) -> bool:
        """Whether this is a decode step that runs without us. What a gate decides is no part of a compiled graph."""
        return self.gate is None and in_compiled_step(source, compat.cache_of(call))

    @cached_property
    def _masks(self) -> bool:
        return any(stage.effect is Effect.MASK for stage in self.plan.stages)

    @cached_property
    def _by_piece(self) -> bool:
        return any(stage.scope in (Scope.CROP, Scope.FRAME) for stage in self.plan.stages)

    @cached_property
    def _in_encoder(self) -> bool:
        return bool(self.plan.encoder_stages)

    @cached_property
    def _on_media(self) -> bool:
        """Whether stages act on visual tokens."""
        return any(stage.role is Role.VISUAL for stage in self.plan.stages)

    @uncompiled
    def _open(self, call: dict[str, Any], source: Tensor) -> None:
        own_labels = labels.take()
        cache = compat.cache_of(call)
        conversation = belonging.conversation_of(self.owner, call, source)
        queries, past = source.shape[1], conversation.columns_in(cache, source.shape[1])
        if conversation.seen is None:
            conversation.begun = past
        if conversation.inputs and conversation.seen is None:
            conversation.shift = shift(conversation.inputs, call, source, past)
        running = Pass(self.owner, conversation, queries, past, cache is not None, self.modules, own_labels)
        if self.gate is not None:
            self._number(self.gate, running, call, source)
        in_prompt = conversation.prompt_end is not None and past < conversation.prompt_end
        if past == 0 or queries > 1 or in_prompt:
            self._prepare(running, call, source)
        elif self._masks:
            self._prepare_masked_step(running, source)
        self.activity.passing(forward.enter(running))

    def _number(self, gate: Gate, running: Pass, call: Mapping[str, Any], source: Tensor) -> None:
        """Find the answer's tokens of a pass for the gate."""
        cache = compat.cache_of(call)
        if cache is not None and not self.trains and (running.past == 0 or running.queries > 1):
            check_gated_cache(cache, self.refusals.decoder.config, gate.layer, gate.method.name)
        running.answers = Answers(answer_numbers(running, source, running.labels), call.get("input_ids"))
        if running.numbers is not None:
            self._remember(running.conversation)
        elif running.conversation.prompt_end is None and running.labels is None and running.conversation.place.outer is None:
            if running.past and running.queries == 1:
                raise UnsupportedCombination(f"{gate.method.name}: {_NO_PROMPT_END}")
            if running.past or not self._on_media:
                say_once(self.owner, f"{gate.method.name} gated nothing in this call: {_NO_PROMPT_END}")

    def _remember(self, conversation: Conversation) -> None:
        """Show a conversation to users. A call within generate() does not take the place of the answer around it."""
        if conversation.place.outer is None:
            self.on_media(conversation)

    @uncompiled
    def _close(self, output: Any) -> None:
        closed = forward.leave(self.owner)
        if self._in_encoder:
            compat.replace_features(output, _unmarked)
        if closed is None:
            return
        running, frame = closed
        self.activity.passed(frame)
        conversation, cache = running.conversation, compat.cache_in(output)
        conversation.seen = running.past + running.queries
        belonging.settle(conversation, output)
        if running.survivors is not None or running.past < (conversation.prompt_end or 1):
            conversation.measured.prefill_kv_bytes = None if cache is None else stored_bytes(cache)
        if running.survivors is not None:
            conversation.measured.live = running.survivors.real & ~running.survivors.dead

    def _prepare(self, running: Pass, call: Mapping[str, Any], source: Tensor) -> None:
        """Find the media of a prefill pass."""
        conversation = running.conversation
        if self._masks and running.past:
            self.refusals.check_masked_turn(conversation)
        found = self.prompts.layout(running, call)
        # Without a cache a gate drops columns, also of a prompt without pictures.
        drops_text = running.numbers is not None and not running.cached and not self.trains
        if found is None and not drops_text:
            if call.get("input_ids") is None and conversation.inputs.get("input_ids") is None and self._on_media:
                say_once(self.owner, _EMBEDDINGS_ONLY)
            if not (self.instructions.turns and running.past):
                return
        found = self.prompts.text_only(running, call) if found is None else found
        running.instructions = self.instructions.columns(running, call, found)
        drops_text = drops_text or bool(running.instructions)
        self.refusals.check(running, call, found, drops_text)
        if not found.media and not drops_text:
            return
        if running.past == 0 and len(conversation.trace):
            conversation.trace.clear()  # without a cache selection is recomputed at every step; the last choice counts
        conversation.past = running.past
        first = conversation.trace.add_media(found.media)
        running.survivors = Survivors.of(found, first, source.device, self._by_piece)
        self._remember(conversation)

    def _prepare_masked_step(self, running: Pass, source: Tensor) -> None:
        """A decode step under effect=mask ranks the prompt's media anew."""
        conversation = running.conversation
        if conversation.layout is None:
            if conversation.inputs or (conversation.place.outer is not None and conversation.seen is not None):
                return  # a text-only prompt
            raise UnsupportedCombination(OPEN_A_CONVERSATION)
        conversation.trace.clear()  # the last choice counts
        rows = conversation.layout.roles.shape[0]
        repeated = conversation.layout.repeated(source.shape[0] // rows).behind(conversation.shift)
        if repeated.media:
            first = conversation.trace.add_media(repeated.media)
            running.survivors = Survivors.of(repeated, first, source.device, self._by_piece)


def _unmarked(features: Any) -> Any:
    """Features of pictures that a call returns: tokens that are gone are zero, the mark is our own affair."""
    if isinstance(features, (list, tuple)):
        return type(features)(_unmarked(part) for part in features)
    return features.nan_to_num(0.0) if isinstance(features, Tensor) else features


_send_labels, _take_labels = uncompiled(labels.send), uncompiled(labels.take)


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _named(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    return dict(zip(names, args, strict=False)) | dict(kwargs)
