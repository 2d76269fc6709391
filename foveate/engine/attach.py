"""An Attachment: a plan on a model. Immutable but for its traces; detaching leaves no trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import update_wrapper
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from foveate.core.learned import LearnedMethod
from foveate.core.plan import Plan, Stage
from foveate.core.trace import Trace
from foveate.engine import compat, conversation, observe
from foveate.engine.activity import Activity
from foveate.engine.base import base_model
from foveate.engine.check import check_plan
from foveate.engine.conversation import Conversation
from foveate.engine.hooks import Hooks
from foveate.engine.soft import SoftMode
from foveate.errors import AttachError, FoveateError, InputError, UnsupportedCombination
from foveate.families import family_for

# Caches that generate() makes by name and that can hold fewer slots than columns.
_CACHES = ("dynamic", "static", "quantized")
# Older names of these that stand in published checkpoints.
_OLD_NAMES = (None, "dynamic_full", "hybrid", "hybrid_chunked", "sliding_window")
_MOST_TRACES = 1_000_000

# Which models carry a plan. Weak on both sides, for an attachment holds its model: a model is freed like any other.
_attached: WeakKeyDictionary[nn.Module, ref[Attachment]] = WeakKeyDictionary()
# Attaching and detaching change a model's hooks: one thread at a time.
_changing = RLock()


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
    if not hasattr(model, "config") and isinstance(getattr(model, "module", None), nn.Module):  # DDP and its like
        raise AttachError(f"{type(model).__name__} wraps a model: attach to the model first, then wrap it")
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise AttachError(f"attach takes a Hugging Face model, a pipeline or a PeftModel, not {type(model).__name__}")
    if any(getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod") for part in model.modules()):
        raise AttachError("a part of the model is compiled already: attach first, compile afterwards")
    return model


_NO_COPY = (
    "this model carries a plan: detach it before copying or pickling it (save_pretrained works as it is), the copy would run "
    "the original's hooks"
)


class _Generate:
    """generate() of one model instance, inside a conversation."""

    def __init__(self, attachment: Attachment, generate: Any) -> None:
        self._attachment, self._generate = attachment, generate
        update_wrapper(self, generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attachment = self._attachment
        talk = attachment._conversation_for(args, kwargs)
        with _changing:  # not while another thread changes hooks
            running = attachment._activity.generating()
        token = conversation.push(talk)
        try:
            return self._generate(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, FoveateError):
                attachment._hooks.prompts.explain(talk)
            raise
        finally:
            conversation.pop(token)
            talk.let_go()
            attachment._hooks.settle()
            attachment._activity.over(running)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AttachError(_NO_COPY)

    def __deepcopy__(self, memo: Any) -> Any:
        raise AttachError(_NO_COPY)


def _checked(modules: Any) -> dict[str, nn.Module]:
    """The modules that a caller gave for learned methods; a plan need not use all of them."""
    if modules is None:
        return {}
    if not isinstance(modules, Mapping) or not all(isinstance(module, nn.Module) for module in modules.values()):
        raise AttachError("modules is a dict: the name of a learned method, and a torch module for it")
    return dict(modules)


def _refuse_carried(model: nn.Module) -> None:
    """Refuse a model that carries a plan, or whose modules do through another model."""
    known = attachment_of(model)
    if known is not None:
        raise AttachError(f"this model already carries the plan '{known}': detach it first, or use attachment.using(plan)")
    own: set[nn.Module] | None = None
    for other in [carried() for carried in _attached.values()]:
        if other is None or other.model is model:
            continue
        own = set(model.modules()) if own is None else own
        if own & other._hooks.hooked:
            raise AttachError(
                f"this model shares modules with another {type(other.model).__name__} that carries the plan '{other}': detach "
                "that one first"
            )


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
        if type(keep_traces) is not int or not 1 <= keep_traces <= _MOST_TRACES:
            raise AttachError(f"keep_traces={keep_traces!r:.40}: write a whole number from 1 to {_MOST_TRACES:,}")
        self.model, self.plan = model, plan
        self.family = family_for(model.config)
        compat.refuse_broken(self.family)
        self._describe, self._shortcut, self.soft, self._given = describe, shortcut, soft, _checked(modules)
        self._conversations: deque[Conversation] = deque(maxlen=keep_traces)
        self._installed = False
        self._own_generate: Any = None  # a generate that somebody else put on the instance
        self._activity = Activity()
        with _changing:
            _refuse_carried(model)
            self._hooks = self._make_hooks(plan)
            self._install(self._hooks)
            _attached[model] = ref(self)

    def _make_hooks(self, plan: Plan) -> Hooks:
        probes = check_plan(plan, self.family, self.model.config)
        texts = {stage: self._describe(stage) for stage in plan.stages}
        learned = [(stage, stage.method) for stage in plan.stages if isinstance(stage.method, LearnedMethod)]
        modules = {stage: self._given.get(method.name) or self._build(method) for stage, method in learned}
        try:
            return Hooks(
                self,
                self.model,
                self.family,
                plan,
                texts,
                probes,
                self._shortcut,
                self._remember,
                modules,
                self._activity,
                self.soft,
            )
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
        if kind not in (*_CACHES, *_OLD_NAMES) and self.plan.stages:
            raise UnsupportedCombination(
                f"cache_implementation='{kind}' cannot hold a pruned cache: use {', '.join(_CACHES)}, or detach the plan"
            )
        if prompt is None:
            return Conversation(self)  # generate itself says what is missing
        return Conversation(self, inputs=inputs, prompt_length=prompt.shape[1])

    def detach(self) -> None:
        """Take everything back. Calling it twice does nothing. Calls that other threads are running end first.

        Raises:
            AttachError: within a forward call of the model.
        """
        with self._activity.settled(_changing):
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
        with self._activity.settled(_changing):
            self._require_attached()
            was_installed, hooks = self._installed, self._hooks
            self._uninstall(hooks)
        try:
            yield
        finally:
            with self._activity.settled(_changing):
                if was_installed and self.is_attached:
                    self._install(hooks)

    @contextmanager
    def _replaced(self, plan: Plan) -> Iterator[Attachment]:
        """Another plan inside the block."""
        with self._activity.settled(_changing):
            self._require_attached()
            before, hooks, was_installed = self.plan, self._hooks, self._installed
            other = self._make_hooks(plan)
            self._uninstall(hooks)
            self.plan, self._hooks = plan, other
            self._install(other)
        try:
            yield self
        finally:
            with self._activity.settled(_changing):
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
    def live_columns(self) -> Tensor:
        """[B, S] bool: columns of the last prefill pass whose hidden states reach the last layer; the others are zero rows.

        For whoever pools hidden states: `(states * live[..., None]).sum(1) / live.sum(1, keepdim=True)`.

        Raises:
            AttachError: if no picture has passed the model yet.
        """
        live = self.last.live
        if live is None:
            raise AttachError("no prompt with a picture has been read since the plan was attached")
        return live

    @property
    def trace(self) -> Trace:
        """What each stage kept in the last conversation, with provenance."""
        return self.last.trace

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The traces of the last conversations, oldest first; `attach(..., keep_traces=n)` says how many."""
        return tuple(talk.trace for talk in self._conversations)

    def __reduce__(self) -> Any:
        raise AttachError(_NO_COPY)

    def __repr__(self) -> str:
        return f"<{self} on {type(self.model).__name__}{'' if self.is_attached else ', detached'}>"

    def __str__(self) -> str:
        return " | ".join(self._describe(stage) for stage in self.plan.stages) or "none"
