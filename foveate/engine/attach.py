"""An Attachment: a plan on a model. Immutable but for its traces; detaching leaves no trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from foveate.core.encoder import PackedPath
from foveate.core.learned import LearnedMethod
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import Point, SiteKind
from foveate.core.trace import Trace
from foveate.engine import compat, conversation, observe
from foveate.engine.base import base_model
from foveate.engine.conversation import Conversation
from foveate.engine.hooks import Hooks
from foveate.engine.soft import SoftMode
from foveate.errors import AttachError, FoveateError, InputError, PlanError, UnsupportedCombination
from foveate.families import Family, family_for

# Caches that generate() makes by name and that can hold fewer slots than columns. "hybrid" stands in published Gemma 3
# checkpoints; transformers reads it as the dynamic cache.
_CACHES = (None, "dynamic", "dynamic_full", "static", "quantized", "hybrid")

# Which models carry a plan. Weak on both sides, for an attachment holds its model: a model is freed like any other.
_attached: WeakKeyDictionary[nn.Module, ref[Attachment]] = WeakKeyDictionary()


def attachment_of(model: nn.Module) -> Attachment | None:
    """The attachment that a model carries, if any."""
    known = _attached.get(model)
    return None if known is None else known()


def unwrap(model: Any) -> nn.Module:
    """The Hugging Face model inside a pipeline or a PEFT wrapper.

    Raises:
        AttachError: for a compiled model, or something that holds no model.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise AttachError("the model is compiled already: attach first, compile afterwards")
    if hasattr(model, "get_base_model"):  # PeftModel
        return unwrap(model.get_base_model())
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):  # pipeline
        return unwrap(model.model)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise AttachError(f"attach takes a Hugging Face model, a pipeline or a PeftModel, not {type(model).__name__}")
    if any(getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod") for part in model.modules()):
        raise AttachError("a part of the model is compiled already: attach first, compile afterwards")
    return model


def check_plan(plan: Plan, family: Family, config: Any) -> dict[int, int]:
    """Check a plan against a model; returns, for each stage's layer, the layer whose attention it can observe.

    Raises:
        PlanError: for a layer beyond the model, or one without a full-attention layer below.
        UnsupportedCombination: for a site that the family does not serve.
    """
    windows = family.decoder_windows(config)
    full = [layer for layer, window in enumerate(windows) if window is None]
    probes = {}
    for stage in plan.stages:
        reason = family.unsupported.get(stage.site.kind)
        if reason is not None:
            raise UnsupportedCombination(f"{family.title} cannot serve site {stage.site}: {reason}")
        if stage.site.kind is SiteKind.VISION_LAYER:
            _check_encoder_stage(stage, family, config)
            continue
        if stage.method.weighs_sizes:
            raise UnsupportedCombination(
                f"{stage.method.name} at {stage.site}: attention weighs sizes in vision encoders only; leave proportional out"
            )
        if stage.site.kind not in (SiteKind.PRE_LLM, SiteKind.LLM_LAYER, SiteKind.DECODE):
            raise UnsupportedCombination(f"site {stage.site} has no engine yet; use site=pre_llm or layer=k")
        layer = stage.site.layer if stage.site.kind is SiteKind.DECODE else stage.site.decoder_layer
        assert layer is not None
        if layer >= len(windows):
            raise PlanError(f"layer={layer}: this model has {len(windows)} decoder layers, write 1..{len(windows) - 1}")
        reason = family.refuse_layer(config, layer)
        if reason is not None:
            raise PlanError(f"layer={layer}: {reason}")
        below = [candidate for candidate in full if candidate < layer]
        if stage.method.needs() and not below:
            smallest = full[0] + 1 if full else None
            advice = f"the smallest valid layer is {smallest}" if smallest else "this model has no full-attention layer"
            raise PlanError(
                f"{stage.method.name}(layer={layer}): layers below {layer} see a sliding window only, so their attention "
                f"says nothing about the whole picture; {advice}"
            )
        if below:
            probes[layer] = below[-1]
        if stage.effect is Effect.MASK and stage.method.reads_features:
            raise PlanError(
                f"{stage.method.name} reads hidden states, which cached tokens no longer have: effect=mask works with "
                "methods that rank by attention or position"
            )
    _check_probed(plan, family, config)
    return probes


def _check_probed(plan: Plan, family: Family, config: Any) -> None:
    """Between the encoder layer whose attention a stage ranks by and the stage itself no other stage may act."""
    path = family.encoder(config) if plan.encoder_stages else None
    if not isinstance(path, PackedPath):
        return
    for layer, stage in plan.encoder_stages.items():
        if stage.method.needs():
            probed = max(at for at in range(layer) if at not in path.windowed)
            between = [at for at in plan.encoder_stages if probed < at < layer]
            if between:
                raise PlanError(
                    f"{stage.method.name} at {stage.site} ranks by layer {probed}, the last one below that looks at the whole "
                    f"picture, but the stage at layer {between[0]} acts in between: move it to layer {probed} or below"
                )


def _check_encoder_stage(stage: Stage, family: Family, config: Any) -> None:
    path, layer = family.encoder(config), stage.site.layer
    assert layer is not None
    if path is None:
        raise UnsupportedCombination(f"{family.title} cannot serve site {stage.site}: its encoder is not described")
    if layer >= path.used:
        raise PlanError(
            f"site={stage.site}: the language model reads what leaves encoder layer {path.used - 1}, a later stage changes "
            f"nothing; write layer=0..{path.used - 1}"
        )
    if stage.method.weighs_sizes and isinstance(path, PackedPath):
        raise UnsupportedCombination(
            f"{family.title} packs all pictures into one sequence, whose kernels take no log(size): leave proportional out"
        )
    if stage.site.point is Point.MID and getattr(path, "middle", None) is None:
        raise UnsupportedCombination(
            f"point=mid: the encoder blocks of {family.title} are not split between attention and MLP; leave point out"
        )
    full = [at for at in range(path.used) if at not in getattr(path, "windowed", ())]
    if stage.method.needs() and not any(at < layer for at in full):
        raise PlanError(
            f"{stage.method.name}(site={stage.site}): no layer below has looked at the whole picture yet; the first layer that "
            f"works is {full[0] + 1}"
        )
    if stage.scope is not Scope.MEDIUM:
        raise PlanError(
            f"scope={stage.scope.value} at {stage.site}: the encoder sees one crop or frame at a time; leave scope out"
        )
    if stage.effect is Effect.MASK:
        raise PlanError(f"effect=mask at {stage.site}: encoder stages drop or merge")
    count = stage.budget.count if stage.budget is not None else None
    if count is not None and count % path.unit**2:
        raise PlanError(
            f"{stage.method.name} at {stage.site}: {path.unit} x {path.unit} patches become one visual token and stay "
            f"together: keep a multiple of {path.unit**2} patches, not {count}"
        )


class _Generate:
    """generate() of one model instance, inside a conversation."""

    def __init__(self, attachment: Attachment, generate: Any) -> None:
        self._attachment, self._generate = attachment, generate
        update_wrapper(self, generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attachment = self._attachment
        talk = attachment._conversation_for(args, kwargs)
        token = conversation.push(talk)
        try:
            return self._generate(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, FoveateError):
                attachment._hooks.explain(talk)
            raise
        finally:
            conversation.pop(token)
            talk.let_go()
            attachment._hooks.settle()

    def __deepcopy__(self, memo: Any) -> Any:
        raise AttachError("this model carries a plan: detach it before copying, the copy would run the original's hooks")


class Attachment:
    """A plan attached to a model. Made by `foveate.attach`; use it as a context manager or call `detach()`.

    Attributes:
        model, family, plan: what is attached to what.
        soft: temperature and shares while learned methods are trained; None otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        describe: Callable[[Stage], str],
        keep_traces: int = 1,
        shortcut: bool = True,
        soft: SoftMode | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Attach.

        Args:
            model: a Hugging Face model (see `unwrap`).
            plan: the plan.
            describe: gives the canonical text of a stage.
            keep_traces: how many past conversations to remember.
            shortcut: skip stages that keep everything. False sends them through gather, projection and slot cache, to
                prove that those change nothing.
            soft: keep every token, for training learned methods.
            modules: by name of a learned method, the module to use instead of the one that it would build.

        Raises:
            AttachError, UnsupportedModel, PlanError, UnsupportedCombination: before anything was touched.
        """
        known = attachment_of(model)
        if known is not None:
            raise AttachError(f"this model already carries the plan '{known}': detach it first, or use attachment.using(plan)")
        if not isinstance(keep_traces, int) or keep_traces < 1:
            raise AttachError(f"keep_traces={keep_traces!r}: write a whole number of at least 1")
        self.model, self.plan = model, plan
        self.family = family_for(model.config)
        compat.refuse_broken(self.family)
        self._describe, self._shortcut, self.soft, self._given = describe, shortcut, soft, dict(modules or {})
        self._conversations: deque[Conversation] = deque(maxlen=keep_traces)
        self._installed = False
        self._own_generate: Any = None  # a generate that somebody else put on the instance
        self._hooks = self._make_hooks(plan)
        compat.warn_if_untested()
        self._install(self._hooks)
        _attached[model] = ref(self)

    def _make_hooks(self, plan: Plan) -> Hooks:
        probes = check_plan(plan, self.family, self.model.config)
        texts = {stage: self._describe(stage) for stage in plan.stages}
        learned = [(stage, stage.method) for stage in plan.stages if isinstance(stage.method, LearnedMethod)]
        modules = {stage: self._given.get(method.name) or self._build(method) for stage, method in learned}
        try:
            return Hooks(self, self.model, self.family, plan, texts, probes, self._shortcut, self._remember, modules, self.soft)
        except AttributeError as error:
            raise AttachError(
                f"{type(self.model).__name__} is not laid out as {self.family.title}: {error}; attach the model with its head, "
                "or compare the family file with this transformers"
            ) from None

    def _build(self, method: LearnedMethod) -> nn.Module:
        return method.build(base_model(self.model, self.family))

    def _remember(self, talk: Conversation) -> None:
        if not any(known is talk for known in self._conversations):
            self._conversations.append(talk)

    def _install(self, hooks: Hooks) -> None:
        compat.forget_compiled(self.model)
        hooks.install()
        self._wrap_generate()
        self._installed = True

    def _uninstall(self, hooks: Hooks) -> None:
        hooks.remove()
        compat.forget_compiled(self.model)
        if self._installed:
            self.model.__dict__.pop("generate", None)
            if self._own_generate is not None:
                self.model.__dict__["generate"] = self._own_generate
        self._installed = False

    def _wrap_generate(self) -> None:
        """Let generate() open a conversation. On the instance, so that removing it restores the class's own."""
        generate = self.model.generate
        self._own_generate = self.model.__dict__.get("generate")

        self.model.__dict__["generate"] = _Generate(self, generate)

    def _conversation_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Conversation:
        inputs = dict(kwargs)
        if args and "input_ids" not in inputs:
            inputs["input_ids"] = args[0]
        if inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs["inputs"]
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        prompt = ids if ids is not None else embeds
        configs = (inputs.get("generation_config"), getattr(self.model, "generation_config", None))
        kinds = [inputs.get("cache_implementation"), *(getattr(config, "cache_implementation", None) for config in configs)]
        kind = next((kind for kind in kinds if kind is not None), None)
        if kind not in _CACHES and self.plan.stages:
            raise UnsupportedCombination(
                f"cache_implementation='{kind}' cannot hold a pruned cache: use {', '.join(_CACHES[1:-1])}, or detach the plan"
            )
        if prompt is None:
            return Conversation(self)  # generate itself says what is missing
        return Conversation(self, inputs=inputs, prompt_length=prompt.shape[1])

    def detach(self) -> None:
        """Take everything back. Calling it twice does nothing."""
        if self.is_attached:
            self._uninstall(self._hooks)
            del _attached[self.model]
            observe.disable(self)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def is_attached(self) -> bool:
        """Whether the model carries this plan."""
        return attachment_of(self.model) is self

    @property
    def is_installed(self) -> bool:
        """Whether its hooks are on the model now: attached and not inside `disabled()`."""
        return self._installed

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The plain model inside the block: no hook is left, so that a comparison is honest."""
        self._require_attached()
        was_installed, hooks = self._installed, self._hooks
        self._uninstall(hooks)
        try:
            yield
        finally:
            if was_installed and self.is_attached:
                self._install(hooks)

    @contextmanager
    def _replaced(self, plan: Plan) -> Iterator[Attachment]:
        """Another plan inside the block."""
        self._require_attached()
        before, hooks, was_installed = self.plan, self._hooks, self._installed
        other = self._make_hooks(plan)
        self._uninstall(hooks)
        self.plan, self._hooks = plan, other
        self._install(other)
        try:
            yield self
        finally:
            self._uninstall(other)
            self.plan, self._hooks = before, hooks
            if was_installed and self.is_attached:
                self._install(hooks)

    @contextmanager
    def conversation(self, prompt_length: int | None = None) -> Iterator[Conversation]:
        """Join bare forward calls into one conversation, as generate() does.

        Args:
            prompt_length: columns of the prompt; later ones are output.
        """
        self._require_attached()
        if prompt_length is not None and (not isinstance(prompt_length, int) or prompt_length < 1):
            raise InputError(f"prompt_length={prompt_length!r}: write the number of prompt columns, at least 1")
        talk = Conversation(self, prompt_length=prompt_length)
        token = conversation.push(talk)
        try:
            yield talk
        finally:
            conversation.pop(token)

    def _require_attached(self) -> None:
        if not self.is_attached:
            raise AttachError("this attachment was detached: call foveate.attach again")

    @property
    def last(self) -> Conversation:
        """The last conversation with visual tokens.

        Raises:
            AttachError: if there was none yet.
        """
        if not self._conversations:
            raise AttachError("no picture has passed the model since the plan was attached: run generate() first")
        return self._conversations[-1]

    @property
    def trace(self) -> Trace:
        """What each stage kept in the last conversation, with provenance."""
        return self.last.trace

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The traces of the last conversations, oldest first; `attach(..., keep_traces=n)` says how many."""
        return tuple(talk.trace for talk in self._conversations)

    def __repr__(self) -> str:
        return f"<{self} on {type(self.model).__name__}{'' if self.is_attached else ', detached'}>"

    def __str__(self) -> str:
        return " | ".join(self._describe(stage) for stage in self.plan.stages) or "none"
