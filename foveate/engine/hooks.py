"""The hooks: what runs around the base model, the decoder, its layers and their attention while a plan is attached."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import EncoderPath, PackedPath
from foveate.core.layout import Layout, Role
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import SiteKind
from foveate.core.view import AttentionRows, Importance
from foveate.engine import belonging, compat, forward, labels, layout, observe, prefill
from foveate.engine.activity import Activity
from foveate.engine.conversation import Conversation
from foveate.engine.decoder import DecoderHooks, in_compiled_step, uncompiled
from foveate.engine.encode_once import EncodeOnce
from foveate.engine.encoder import EncoderHooks
from foveate.engine.forward import Pass
from foveate.engine.gate import Gate, answer_numbers
from foveate.engine.notices import say_once
from foveate.engine.packed_encoder import PackedEncoderHooks
from foveate.engine.side_inputs import SideInputs
from foveate.engine.slot_cache import check_cache, check_gated_cache, stored_bytes
from foveate.engine.soft import SoftHooks, SoftMode
from foveate.engine.watch import Watch
from foveate.errors import AttachError, InputError, UnsupportedCombination
from foveate.families import Family

_CHUNKED = (
    "chunked prefill: stages that look at attention need one chunk with all visual tokens and the prompt's last token, and "
    "no chunk may split an image; raise prefill_chunk_size or leave it out"
)
_NO_PROMPT_END = (
    "a bare call does not say where the prompt ends and the answer begins: run inside generate(), or inside "
    "attachment.conversation(prompt_length=n)"
)
_EMBEDDINGS_ONLY = (
    "this call has inputs_embeds without input_ids, and no placeholder among them: if pictures are merged into them already, "
    "nothing of them was pruned; pass input_ids and pixel values"
)
_OPEN_A_CONVERSATION = "effect=mask chooses anew at every step: run inside generate(), or inside attachment.conversation()"


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
        path = family.encoder(self.config) if inside else None
        self.encoder: EncoderHooks | PackedEncoderHooks | None = None
        if path is not None:
            self.encoder = (
                PackedEncoderHooks(owner, model, path, inside, texts, shortcut, self._known_layout)
                if isinstance(path, PackedPath)
                else EncoderHooks(owner, model, path, inside, texts, shortcut, self._known_layout)
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
        source = _source(call)
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
            talk.shift = _shift(talk.inputs, call, source, past)
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
        source = _source(call)
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
            self._refuse_masked_turn(running.conversation)
        found = self._layout(running, call)
        # Without a cache a gate drops columns, also of a prompt without pictures.
        drops_text = running.numbers is not None and not running.cached and self.soft is None
        if found is None and drops_text:
            found = self._text_layout(running, call)
        if found is None:
            if running.ids_unknown and (self.stages or self.encoder):
                say_once(self.owner, _EMBEDDINGS_ONLY)
            return
        self._refuse(running, call, found)
        if not found.media and not drops_text:
            return
        if running.past == 0 and len(running.conversation.trace):
            running.conversation.trace.clear()  # without a cache every step chooses anew; the last choice counts
        running.conversation.past = running.past
        prefill.begin(running, found, source.device, self.by_piece)
        self._remember(running.conversation)

    def _layout(self, running: Pass, call: Mapping[str, Any]) -> Layout | None:
        """The layout of this pass, None if it is text only. A generate call finds the layout of its prompt once."""
        talk, past = running.conversation, running.past
        if not talk.inputs:
            found = self._find(running, call, call)
            if found is not None and past == 0:
                talk.layout = found
            return found
        if talk.layout is None:
            talk.layout = self._find(running, call, talk.inputs)
        if talk.layout is None:
            return None
        talk.copies = _row_count(call) // talk.layout.roles.shape[0]
        prompt_layout = talk.layout.repeated(talk.copies).behind(talk.shift)
        return prompt_layout.columns_between(past, past + running.queries).extended(running.queries)

    def _known_layout(self, talk: Conversation) -> Layout | None:
        """The layout of the prompt where the encoder runs; generate() may encode pictures before it calls the model."""
        running = forward.current(self.owner)
        if running is not None and not talk.inputs:
            return running.layout
        fresh = compat.cache_of(talk.inputs) is None and isinstance(talk.inputs.get("input_ids"), Tensor)
        if talk.layout is None and fresh:
            talk.layout = self._find(Pass(self.owner, talk, queries=0), talk.inputs, talk.inputs)
        return talk.layout

    def _text_layout(self, running: Pass, call: Mapping[str, Any]) -> Layout:
        """The layout of a call without media."""
        shape = (_row_count(call), running.queries)
        mask = call.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -running.queries :].bool().cpu()
        else:
            real = torch.ones(shape, dtype=torch.bool, device="cpu")
        length = running.conversation.prompt_end
        return Layout.build(torch.zeros(shape, dtype=torch.bool, device="cpu"), real, [[] for _ in range(shape[0])], length)

    def _find(self, running: Pass, call: Mapping[str, Any], inputs: Mapping[str, Any]) -> Layout | None:
        """The layout of `inputs`: of the whole prompt inside generate, of this call's columns otherwise."""
        length, past = running.conversation.prompt_length, running.past
        in_generate = inputs is running.conversation.inputs
        mask = layout.two_dimensional_mask(call, inputs, in_generate)
        ids = inputs.get("input_ids")
        embeds = None if ids is not None else inputs.get("inputs_embeds")
        embed = self.model.get_input_embeddings()  # type: ignore[operator]
        codes = layout.column_codes(self.family, self.config, ids, embeds, mask, embed, running.labels)
        # Positions that generate() made itself are those of single samples.
        packing = () if in_generate else layout.PACKING
        codes, inputs = layout.fetch(codes, inputs, (*self.family.host_inputs, *packing))
        samples = None if in_generate else layout.packed_samples(inputs, codes)
        if not in_generate and length is not None:
            length = length - past if length > past else None
        cached = past - running.conversation.shift if in_generate else 0
        try:
            return layout.build_layout(self.family, self.config, inputs, codes, length, cached, samples)
        except InputError:
            layout.refuse_hidden(self.family, self.config, ids, mask)
            raise

    def explain(self, talk: Conversation) -> None:
        """Raise InputError if media that do not fit their placeholders made generate() fail in transformers' own code."""
        ids = talk.inputs.get("input_ids")
        if talk.layout is None and isinstance(ids, Tensor):
            codes = layout.column_codes(self.family, self.config, ids, None, talk.inputs.get("attention_mask"), nn.Identity())
            layout.build_layout(self.family, self.config, talk.inputs, codes.cpu(), talk.prompt_length)

    def _refuse(self, running: Pass, call: Mapping[str, Any], found: Layout) -> None:
        """Say no to what cannot work, before any layer has run."""
        split = int((found.roles == int(Role.VISUAL)).sum()) != sum(medium.shape.tokens for medium in found.media)
        if split:
            raise UnsupportedCombination(_CHUNKED)
        talk = running.conversation
        if found.samples is not None:
            self._refuse_packed(running, call)
        if not found.media:
            return
        mask = call.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > running.past + running.queries and talk.inputs:
            raise UnsupportedCombination(
                f"attention_mask has {mask.shape[1]} columns, the cache and this call have {running.past + running.queries}: "
                "virtual tokens of a wrapper did not arrive (does this version of peft know this version of transformers?)"
            )
        if running.cached:
            check_cache(compat.cache_of(call), self.decoder.config, self.masks)
        reason = self.family.refuse_length(self.config, running.past + running.queries)
        if reason is not None and not self.masks:
            raise UnsupportedCombination(reason)
        # As transformers reads it: the argument, else the config.
        if call.get("output_attentions", getattr(self.decoder.config, "output_attentions", False)):
            raise UnsupportedCombination(
                "output_attentions is not defined for pruned layers: use attachment.disabled() to look at the plain model's"
            )
        checkpointed = self.model.training and getattr(self.decoder, "gradient_checkpointing", False)
        if checkpointed and not compat.HOOKS_SURVIVE_CHECKPOINTING:
            raise UnsupportedCombination("gradient checkpointing under a plan needs transformers >= 5.23")
        ends_early = talk.prompt_end is not None and running.past + running.queries < talk.prompt_end
        if ends_early and self.watches:
            raise UnsupportedCombination(_CHUNKED)

    def _refuse_packed(self, running: Pass, call: Mapping[str, Any]) -> None:
        """Several samples in a row: each as if alone, where transformers keeps them apart and every stage can."""
        mask, use_cache = call.get("attention_mask"), call.get("use_cache")
        keeps_cache = getattr(self.decoder.config, "use_cache", True) if use_cache is None else use_cache
        own_mask = isinstance(mask, Tensor) and mask.ndim == 4
        name = self.decoder.config._attn_implementation  # type: ignore[union-attr]
        reason = None
        if self.gate is not None or self.decoder_hooks.instructs or self.soft is not None:
            reason = "stages on text, gates and mode='soft' take one sample a row"
        elif "flash" in str(name):
            reason = f"{name} tells samples apart by positions, which have gaps behind a stage; use sdpa"
        elif self.family.bidirectional:
            reason = f"transformers does not keep samples of {self.family.title} apart"
        elif not own_mask and (mask is not None or running.cached or keeps_cache):
            reason = "transformers keeps them apart only without a cache and a mask: pass use_cache=False and no attention_mask"
        if reason is not None:
            raise UnsupportedCombination(f"several samples are packed into one row (position_ids start anew): {reason}")

    def _refuse_masked_turn(self, talk: Conversation) -> None:
        """Several tokens behind a cache cannot have one choice, unless there is no picture to choose from."""
        if talk.layout is None and not talk.inputs:
            if talk.outer is not None and talk.seen is not None:
                return  # a text-only call within generate()
            raise UnsupportedCombination(_OPEN_A_CONVERSATION)
        ids = talk.inputs.get("input_ids")
        placeholders = list(self.family.placeholder_ids(self.config).values())
        pictures = (
            bool(talk.layout.media)
            if talk.layout is not None
            else ids is None or bool(torch.isin(ids, torch.tensor(placeholders, device=ids.device)).any())
        )
        if pictures:
            raise UnsupportedCombination(
                "effect=mask chooses anew for every token: several tokens behind a cache (a second turn, assisted decoding, "
                "chunked prefill) would need several choices at once; use effect=drop"
            )

    def _prepare_masked_step(self, running: Pass, source: Tensor) -> None:
        """A decode step under effect=mask ranks the prompt's media anew."""
        talk = running.conversation
        if talk.layout is None:
            if talk.inputs or (talk.outer is not None and talk.seen is not None):
                return  # a text-only prompt
            raise UnsupportedCombination(_OPEN_A_CONVERSATION)
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


def _source(call: Mapping[str, Any]) -> Tensor | None:
    """The ids or embeddings of a call."""
    return call["input_ids"] if call.get("input_ids") is not None else call.get("inputs_embeds")


def _shift(inputs: Mapping[str, Any], call: Mapping[str, Any], source: Tensor, past: int) -> int:
    """Columns that a wrapper put in front of generate's prompt: virtual tokens as embeddings, or in a cache of its own."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or inputs.get("inputs_embeds") is not None:
        return 0
    if call.get("input_ids") is not None:
        return past if compat.cache_of(inputs) is None else 0
    extra = past + source.shape[1] - ids.shape[1]
    if extra < 0:
        raise UnsupportedCombination("virtual tokens in front of a prompt that is read in chunks: leave prefill_chunk_size out")
    return extra


def _row_count(call: Mapping[str, Any]) -> int:
    source = _source(call)
    assert source is not None
    return int(source.shape[0])
