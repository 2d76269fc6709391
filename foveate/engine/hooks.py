"""Which hooks a plan needs: this file installs and removes them. What they do stands in the files of their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import EncoderPath, PackedPath, RasterPath
from foveate.core.layout import Role
from foveate.core.plan import Effect, Plan, Stage
from foveate.core.site import SiteKind
from foveate.core.view import AttentionRows, Change
from foveate.engine import compat, forward, labels, observe
from foveate.engine.activity import Activity
from foveate.engine.attention_probe import AttentionProbe
from foveate.engine.conversation import Conversation
from foveate.engine.decoder import DecoderHooks
from foveate.engine.encode_once import EncodeOnce
from foveate.engine.encoder import EncoderHooks
from foveate.engine.gate import Gate
from foveate.engine.instruct import Instructions
from foveate.engine.packed_encoder import PackedEncoderHooks
from foveate.engine.passes import Passes
from foveate.engine.prompts import Prompts
from foveate.engine.raster_encoder import RasterEncoderHooks
from foveate.engine.refusals import Refusals
from foveate.engine.side_inputs import SideInputs
from foveate.engine.soft import SoftHooks, SoftMode
from foveate.families import Family


class Hooks:
    """Installs the hooks that a plan needs, and nothing else; removes all of them.

    Args:
        owner: the attachment, as the key of passes and conversations.
        model: the top model.
        family: its family.
        plan: a plan that was checked against both.
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
        probe_layers: Mapping[int, int],
        shortcut: bool,
        on_media: Callable[[Conversation], None],
        modules: Mapping[Stage, nn.Module],
        activity: Activity,
        soft: SoftMode | None = None,
    ) -> None:
        self.owner, self.model, self.modules = owner, model, modules
        self.prompts = Prompts(owner, model, family)
        self.parts = _Parts(owner, model, family, plan, probe_layers, shortcut, self.prompts, soft, modules)
        refusals = Refusals(
            model,
            family,
            self.parts.decoder,
            self.parts.hooks.masks,
            any(stage.method.needs() for stage in self.parts.hooks.stages.values()),
            self.parts.on_text or soft is not None,
        )
        base = model.get_submodule(family.base)
        self.passes = Passes(
            owner,
            model,
            base,
            plan,
            self.parts.gate,
            self.prompts,
            refusals,
            Instructions(plan, family, model.config),
            modules,
            activity,
            on_media,
            soft is not None,
        )
        self.handles: list[RemovableHandle | EncodeOnce] = []

    @property
    def hooked(self) -> set[nn.Module]:
        """The modules whose calls the plan changes."""
        parts = self.parts
        towers = [] if parts.encoder is None else list(parts.encoder.towers)
        return {self.model, self.passes.base, parts.decoder, *towers, *parts.layers[parts.first :]}

    def install(self) -> None:
        """Register every hook."""
        parts = self.parts
        if not parts.acts:
            return
        # Where the base is the decoder, its states are put back before its pass is closed: hooks run in this order.
        self.handles += [parts.ends(), *self.passes.install(), *parts.install()]
        if parts.family.placeholders and not compat.encodes_beforehand(self.model):
            self.handles.append(EncodeOnce(self.owner, self.passes.base))
        if parts.probes or parts.encoder is not None:
            observe.enable(self.owner)

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.parts.soft is not None:
            self.parts.soft.remove()
        self.settle()

    def settle(self) -> None:
        """Forget a call that was interrupted: torch runs no hooks after KeyboardInterrupt."""
        forward.drop_interrupted()
        labels.take()
        if self.parts.encoder is not None:
            self.parts.encoder.settle()
        for probe in self.parts.probes.values():
            observe.disarm(self.parts.attention(probe.layer))


class _Parts:
    """What acts inside the encoder and the decoder under a plan; arguments as of `Hooks`."""

    def __init__(
        self,
        owner: object,
        model: nn.Module,
        family: Family,
        plan: Plan,
        probe_layers: Mapping[int, int],
        shortcut: bool,
        prompts: Prompts,
        soft: SoftMode | None,
        modules: Mapping[Stage, nn.Module],
    ) -> None:
        config: Any = model.config
        self.family, self.decoder = family, model.get_submodule(family.decoder)
        self.layers = list(self.decoder.get_submodule("layers").children())
        stateful = family.stateful_layers(config)
        self.gate = None
        if plan.gate is not None:
            self.gate = Gate(plan.gate, any(layer >= (plan.gate.site.layer or 0) for layer in stateful))
        stages = {
            (stage.role, stage.site.decoder_layer): stage
            for stage in plan.stages
            if stage.site.kind not in (SiteKind.VISION_LAYER, SiteKind.DECODE)
        }
        visual = {layer: stage for (role, layer), stage in stages.items() if role is Role.VISUAL and layer is not None}
        instructs = {layer: stage for (role, layer), stage in stages.items() if role is not Role.VISUAL and layer is not None}
        observations = dict.fromkeys(need for stage in visual.values() for need in stage.method.needs())
        asked = [need for need in observations if need.encodes]
        path = family.encoder(config) if plan.encoder_stages or asked else None
        self.encoder: EncoderHooks | PackedEncoderHooks | None = None
        if isinstance(path, RasterPath):
            self.encoder = RasterEncoderHooks(owner, model, path, plan.encoder_stages, shortcut, prompts.known, asked)
        elif isinstance(path, PackedPath):
            self.encoder = PackedEncoderHooks(owner, model, path, plan.encoder_stages, shortcut, prompts.known, asked)
        elif path is not None:
            self.encoder = EncoderHooks(owner, model, path, plan.encoder_stages, shortcut, prompts.known, asked)
        masks = any(stage.effect is Effect.MASK for stage in plan.stages)
        acting = [*visual, *instructs, *([] if self.gate is None else [self.gate.layer])]
        moved = frozenset(layer - 1 for layer, stage in visual.items() if Change() in stage.method.needs())
        matches = any(isinstance(one.probed, AttentionRows) and one.probed.query == "matched" for one in observations)
        self.first = 0 if plan.encoder_stages or matches else min([*acting, *moved], default=0)
        self.probes: dict[int, AttentionProbe] = {}
        for layer, stage in visual.items():
            for observation in stage.method.needs():
                if not observation.attends:
                    continue
                probed = probe_layers[layer]
                rotates = family.rotates(config, probed)
                probe = self.probes.setdefault(probed, AttentionProbe(owner, probed, masks, rotates))
                if (layer, observation.probed) not in probe.wanted:
                    probe.wanted.append((layer, observation.probed))
        marked = bool(plan.encoder_stages)
        mixes = marked and isinstance(path, EncoderPath) and path.mixes
        self.hooks = DecoderHooks(
            owner, self.decoder, visual, shortcut, masks, marked, mixes, self.gate, instructs, stateful, moved, matches
        )
        self.soft = None if soft is None else SoftHooks(owner, plan, modules, soft)
        self.side = SideInputs(owner, family, config, self.decoder, self.first, not masks and soft is None)

    @property
    def on_text(self) -> bool:
        """Whether stages act on text."""
        return self.gate is not None or bool(self.hooks.instructs)

    @property
    def acts(self) -> bool:
        """Whether the plan has any stage."""
        return bool(self.hooks.stages) or self.encoder is not None or self.on_text

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        return self.layers[layer].get_submodule(self.family.attention)

    def ends(self) -> RemovableHandle:
        """Register what puts the decoder's states back into their columns."""
        return self.decoder.register_forward_hook(self.hooks.after_decoder)

    def install(self) -> list[RemovableHandle]:
        """Register the other hooks of all parts."""
        handles = self.side.install()
        for index, layer in enumerate(self.layers):
            if self.soft is not None:
                if index >= self.first:
                    handles.append(layer.register_forward_pre_hook(self.soft.before_layer(index), with_kwargs=True))
            elif index >= self.first:
                for hook in self.side.around(index, self.hooks.before_layer(index)):
                    handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            if index in self.probes:
                probe = self.probes[index]
                handles.append(self.attention(index).register_forward_pre_hook(probe.before, with_kwargs=True))
                handles.append(self.attention(index).register_forward_hook(probe.after, with_kwargs=True, always_call=True))
        if self.soft is not None:
            self.soft.install([self.attention(index) for index in range(self.first, len(self.layers))])
        return handles if self.encoder is None else [*handles, *self.encoder.install()]
