"""The hooks: what runs around the base model, the decoder, its layers and their attention while a plan is attached."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import EncoderPath, PackedPath
from foveate.core.layout import Role
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import SiteKind
from foveate.core.view import AttentionRows, Importance
from foveate.engine import belonging, compat, forward, labels, observe, prefill
from foveate.engine.activity import Activity
from foveate.engine.conversation import Conversation
from foveate.engine.decoder import DecoderHooks, in_compiled_step, uncompiled
from foveate.engine.encode_once import EncodeOnce
from foveate.engine.encoder import EncoderHooks
from foveate.engine.forward import Pass
from foveate.engine.gate import Gate, answer_numbers
from foveate.engine.notices import say_once
from foveate.engine.packed_encoder import PackedEncoderHooks
from foveate.engine.prompts import Prompts, shift, source_of
from foveate.engine.refusals import OPEN_A_CONVERSATION, Refusals
from foveate.engine.side_inputs import SideInputs
from foveate.engine.slot_cache import check_gated_cache, stored_bytes
from foveate.engine.soft import SoftHooks, SoftMode
from foveate.engine.watch import Watch
from foveate.errors import AttachError, UnsupportedCombination
from foveate.families import Family

_NO_PROMPT_END = (
    "a bare call does not say where the prompt ends and the answer begins: run inside generate(), or inside "
    "attachment.conversation(prompt_length=n)"
)
_EMBEDDINGS_ONLY = (
    "this call has inputs_embeds without input_ids, and no placeholder among them: if pictures are merged into them already, "
    "nothing of them was pruned; pass input_ids and pixel values"
)


class Hooks:
    """Installs the hooks that a plan needs, and nothing else; removes all of them.

    Args:
        owner: the attachment, as the key of passes and conversations.
        model: the top model.
        family: its family.
        plan: a plan that was checked against both.
        texts: canonical text of each stage, for the trace.
        probe_layers: for each stage's layer the full-attention layer whose attention it observes.
        shortcut: skip stages that keep everything.
        on_media: called with the conversation when a pass finds media.
        modules: of learned methods, by their stage.
        activity: where running calls are noted.
        soft: keep every token and train those modules; None to drop.
    """

    def __init__(
        self,
        owner: object,
        model: nn.Module,
        family: Family,
        plan: Plan,
        texts: Mapping[Stage, str],
        probe_layers: Mapping[int, int],
        shortcut: bool,
        on_media: Callable[[Conversation], None],
        modules: Mapping[Stage, nn.Module],
        activity: Activity,
        soft: SoftMode | None = None,
    ) -> None:
        self.owner, self.model, self.family, self.on_media = owner, model, family, on_media
        self.config: Any = model.config
        self.modules, self.activity = modules, activity
        self.base = model.get_submodule(family.base)
        self.decoder = model.get_submodule(family.decoder)
        self.base_arguments = list(inspect.signature(self.base.forward).parameters)
        self.model_arguments = list(inspect.signature(model.forward).parameters)
        self.stages: dict[int, Stage] = {}
        instructs: dict[int, Stage] = {}
        inside: dict[int, Stage] = {}
        for stage in plan.stages:
            if stage.site.kind is SiteKind.VISION_LAYER:
                assert stage.site.layer is not None
                inside[stage.site.layer] = stage
            elif stage.site.kind is not SiteKind.DECODE:
                assert stage.site.decoder_layer is not None
                (self.stages if stage.role is Role.VISUAL else instructs)[stage.site.decoder_layer] = stage
        self.prompts = Prompts(owner, model, family)
        path = family.encoder(self.config) if inside else None
        self.encoder: EncoderHooks | PackedEncoderHooks | None = None
        if path is not None:
            self.encoder = (
                PackedEncoderHooks(owner, model, path, inside, texts, shortcut, self.prompts.known)
                if isinstance(path, PackedPath)
                else EncoderHooks(owner, model, path, inside, texts, shortcut, self.prompts.known)
            )
        self.gate = None if plan.gate is None else Gate(plan.gate)
        acting = [*self.stages, *instructs, *([] if self.gate is None else [self.gate.layer])]
        self.first = 0 if self.encoder is not None else min(acting, default=0)
        self.masks = any(stage.effect is Effect.MASK for stage in plan.stages)
        self.by_piece = any(stage.scope in (Scope.CROP, Scope.FRAME) for stage in plan.stages)
        self.watches: dict[int, Watch] = {}
        for layer, stage in self.stages.items():
            for observation in stage.method.needs():
                rows = observation.rows if isinstance(observation, Importance) else observation
                assert isinstance(rows, AttentionRows)
                probed = probe_layers[layer]
                rotates = family.rotates(self.config, probed)
                watch = self.watches.setdefault(probed, Watch(owner, probed, self.masks, rotates))
                watch.wanted.append((layer, rows))
        self.decoder_hooks = DecoderHooks(
            owner,
            self.decoder,
            self.stages,
            texts,
            shortcut,
            self.masks,
            marked=path is not None,
            mixes=isinstance(path, EncoderPath) and path.mixes,
            gate=self.gate,
            instructs=instructs,
        )
        on_text = self.gate is not None or bool(instructs) or soft is not None
        self.refusals = Refusals(model, family, self.decoder, self.masks, bool(self.watches), on_text)
        self.soft = None if soft is None else SoftHooks(owner, plan, modules, soft)
        shortens = not self.masks and soft is None
        self.side = SideInputs(owner, family, self.config, self.decoder, self.first, shortens)
        self.handles: list[RemovableHandle | EncodeOnce] = []

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AttachError("this model carries a plan: detach it before copying or pickling it (save_pretrained works as it is)")

    @property
    def hooked(self) -> set[nn.Module]:
        """The modules whose calls the plan changes."""
        towers = [] if self.encoder is None else list(self.encoder.towers)
        layers = self.decoder.get_submodule("layers").children()
        return {self.model, self.base, self.decoder, *towers, *list(layers)[self.first :]}

    def install(self) -> None:
        """Register every hook."""
        if not (self.stages or self.decoder_hooks.instructs or self.encoder or self.gate):
            return
        layers = self.decoder.get_submodule("layers")
        self.handles += [
            self.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            self.model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True),
            self.base.register_forward_pre_hook(self._before_base, with_kwargs=True),
            self.base.register_forward_hook(self._after_base, with_kwargs=True, always_call=True),
            self.decoder.register_forward_hook(self.decoder_hooks.after_decoder),
            *self.side.install(),
        ]
        for index, layer in enumerate(layers.children()):
            if self.soft is not None:
                if index >= self.first:
                    self.handles.append(layer.register_forward_pre_hook(self.soft.before_layer(index), with_kwargs=True))
            elif index >= self.first:
                for hook in self.side.around(index, self.decoder_hooks.before_layer(index)):
                    self.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            if index in self.watches:
                attention, watch = layer.get_submodule(self.family.attention), self.watches[index]
                self.handles.append(attention.register_forward_pre_hook(watch.before, with_kwargs=True))
                self.handles.append(attention.register_forward_hook(watch.after, with_kwargs=True, always_call=True))
        if self.soft is not None:
            deep = list(layers.children())[self.first :]
            self.soft.install([layer.get_submodule(self.family.attention) for layer in deep])
        if self.encoder is not None:
            self.handles += self.encoder.install()
        if not compat.encodes_beforehand(self.model):
            self.handles.append(EncodeOnce(self.owner, self.base))
        if self.watches or self.encoder is not None:
            observe.enable(self.owner)

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.soft is not None:
            self.soft.remove()
        self.settle()

    def settle(self) -> None:
        """Forget a call that was interrupted: torch runs no hooks behind KeyboardInterrupt."""
        forward.drop_interrupted()
        labels.take()
        if self.encoder is not None:
            self.encoder.settle()
        for index in self.watches:
            observe.disarm(self.decoder.get_submodule(f"layers.{index}.{self.family.attention}"))

    # The model and its base: opening and closing a pass.

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _named(self.model_arguments, args, kwargs).get("labels") is not None:
            return _send_labels(self.model_arguments, args, kwargs)
        return None

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _named(self.model_arguments, args, kwargs).get("labels") is not None:
            _take_labels()  # of a call that failed before its base took them

    def _before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _named(self.base_arguments, args, kwargs)
        source = source_of(call)
        # Without a source the model itself says what is missing. A compiled decode step finds what it needs in the cache.
        if source is not None and not in_compiled_step(source, compat.cache_of(call)):
            self._open_pass(call, source)

    @uncompiled
    def _open_pass(self, call: dict[str, Any], source: Tensor) -> None:
        own_labels = labels.take()
        cache = compat.cache_of(call)
        talk = belonging.conversation_of(self.owner, call, source)
        past = talk.columns_in(cache, source.shape[1])
        if talk.inputs and talk.seen is None:
            talk.shift = shift(talk.inputs, call, source, past)
        running = Pass(self.owner, talk, queries=source.shape[1], past=past, cached=cache is not None, labels=own_labels)
        running.modules = self.modules
        running.ids_unknown = call.get("input_ids") is None and talk.inputs.get("input_ids") is None
        if self.gate is not None:
            self._number(running, call, source)
        in_prompt = talk.prompt_end is not None and past < talk.prompt_end
        if past == 0 or source.shape[1] > 1 or in_prompt:
            self._prepare(running, call, source)
        elif self.masks:
            self._prepare_masked_step(running, source)
        forward.enter(running)
        self.activity.passing(running.frame)

    def _number(self, running: Pass, call: Mapping[str, Any], source: Tensor) -> None:
        """Find the answer's tokens of a pass for the gate."""
        assert self.gate is not None
        cache = compat.cache_of(call)
        if cache is not None and self.soft is None and (running.past == 0 or running.queries > 1):
            check_gated_cache(cache, self.gate.layer, self.gate.method.name)
        running.ids = call.get("input_ids")
        running.numbers = answer_numbers(running, source, running.labels)
        if running.numbers is not None:
            self._remember(running.conversation)
        elif running.conversation.prompt_end is None and running.labels is None and running.conversation.outer is None:
            if running.past and running.queries == 1:
                raise UnsupportedCombination(f"{self.gate.method.name}: {_NO_PROMPT_END}")
            if running.past or not (self.stages or self.encoder):
                say_once(self.owner, f"{self.gate.method.name} gated nothing in this call: {_NO_PROMPT_END}")

    def _remember(self, talk: Conversation) -> None:
        """Show a conversation to users. A call within generate() does not take the place of the answer around it."""
        if talk.outer is None:
            self.on_media(talk)

    def _after_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = _named(self.base_arguments, args, kwargs)
        source = source_of(call)
        if source is not None and not in_compiled_step(source, compat.cache_of(call)):
            self._close_pass(output)

    @uncompiled
    def _close_pass(self, output: Any) -> None:
        running = forward.current(self.owner)
        forward.leave(self.owner)
        if self.encoder is not None:
            compat.replace_features(output, _unmarked)
        if running is None:
            return
        self.activity.passed(running.frame)
        talk, cache = running.conversation, compat.cache_in(output)
        talk.seen = running.past + running.queries
        belonging.settle(talk, output)
        if running.layout is not None or running.past < (talk.prompt_end or 1):
            talk.prefill_kv_bytes = None if cache is None else stored_bytes(cache)
        if running.layout is not None:
            assert running.real is not None and running.dead is not None
            talk.live = running.real & ~running.dead

    def _prepare(self, running: Pass, call: Mapping[str, Any], source: Tensor) -> None:
        """Find the media of a prefill pass."""
        if self.masks and running.past:
            self.refusals.check_masked_turn(running.conversation)
        found = self.prompts.layout(running, call)
        # Without a cache a gate drops columns, also of a prompt without pictures.
        drops_text = running.numbers is not None and not running.cached and self.soft is None
        if found is None and drops_text:
            found = self.prompts.text_only(running, call)
        if found is None:
            if running.ids_unknown and (self.stages or self.encoder):
                say_once(self.owner, _EMBEDDINGS_ONLY)
            return
        self.refusals.check(running, call, found)
        if not found.media and not drops_text:
            return
        if running.past == 0 and len(running.conversation.trace):
            running.conversation.trace.clear()  # without a cache every step chooses anew; the last choice counts
        running.conversation.past = running.past
        prefill.begin(running, found, source.device, self.by_piece)
        self._remember(running.conversation)

    def _prepare_masked_step(self, running: Pass, source: Tensor) -> None:
        """A decode step under effect=mask ranks the prompt's media anew."""
        talk = running.conversation
        if talk.layout is None:
            if talk.inputs or (talk.outer is not None and talk.seen is not None):
                return  # a text-only prompt
            raise UnsupportedCombination(OPEN_A_CONVERSATION)
        talk.trace.clear()  # the last choice counts
        repeated = talk.layout.repeated(source.shape[0] // talk.layout.roles.shape[0]).behind(talk.shift)
        if repeated.media:
            prefill.begin(running, repeated, source.device, self.by_piece)


def _unmarked(features: Any) -> Any:
    """Features of pictures that a call returns: tokens that are gone are zero, the mark is our own affair."""
    if isinstance(features, (list, tuple)):
        return type(features)(_unmarked(part) for part in features)
    return features.nan_to_num(0.0) if isinstance(features, Tensor) else features


_send_labels, _take_labels = uncompiled(labels.send), uncompiled(labels.take)


def _named(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    return dict(zip(names, args, strict=False)) | dict(kwargs)
