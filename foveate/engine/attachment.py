"""An Attachment: a plan on a model. Immutable but for its traces; detaching leaves no trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import ref

from torch import Tensor, nn

from foveate.core.plan import Plan, Stage
from foveate.core.trace import Trace
from foveate.engine import compat, observe
from foveate.engine.activity import Activity
from foveate.engine.carrying import ATTACHED, CHANGING, NO_COPY, attachment_of, refuse_carried
from foveate.engine.check import check_plan
from foveate.engine.conversation import Conversation, close_block, open_block
from foveate.engine.generating import Generate
from foveate.engine.hooks import Hooks
from foveate.engine.learned_modules import checked, modules_of
from foveate.engine.report import Report, estimate_of, report_of
from foveate.engine.soft import SoftMode
from foveate.errors import AttachError, InputError, UnsupportedCombination
from foveate.families import family_for

_MOST_TRACES = 1_000_000


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
        keep_traces: int = 1,
        shortcut: bool = True,
        soft: SoftMode | None = None,
        modules: Mapping[str, nn.Module] | None = None,
        read: Callable[[Any], Plan] = Plan.of,
    ) -> None:
        """Attach.

        Args:
            model: a Hugging Face model (see `unwrap`).
            plan: the plan.
            keep_traces: how many past conversations to remember.
            shortcut: skip stages that keep everything; False proves that gather, projection and slot cache change nothing.
            soft: keep every token, for training learned methods.
            modules: by name of a learned method, the module to use instead of the one that it would build.
            read: makes a plan of what `using` is given.

        Raises:
            AttachError, UnsupportedModel, PlanError, UnsupportedCombination: before anything was touched.
        """
        if type(keep_traces) is not int or not 1 <= keep_traces <= _MOST_TRACES:
            raise AttachError(f"keep_traces={keep_traces!r:.40}: write a whole number from 1 to {_MOST_TRACES:,}")
        self.model, self.plan = model, plan
        self.family = family_for(model.config)
        compat.refuse_broken(self.family)
        self._read, self._shortcut, self.soft, self._given = read, shortcut, soft, checked(modules)
        self._conversations: deque[Conversation] = deque(maxlen=keep_traces)
        self._activity, self._installed = Activity(), False
        self._own_generate: Any = None  # a generate that somebody else put on the instance
        with CHANGING:
            refuse_carried(model)
            self._hooks = self._make_hooks(plan)
            self._install(self._hooks)
            ATTACHED[model] = ref(self)

    def _make_hooks(self, plan: Plan) -> Hooks:
        probes = check_plan(plan, self.family, self.model.config)
        if self.soft is not None and self.family.stateful_layers(self.model.config):
            raise UnsupportedCombination(
                f"{self.family.title} has layers without attention, where no weight hides a token: nothing can be trained there"
            )
        modules = modules_of(plan, self.model, self.family, self._given)
        try:
            return Hooks(
                self, self.model, self.family, plan, probes, self._shortcut, self._remember, modules, self._activity, self.soft
            )
        except AttributeError as error:
            raise AttachError(
                f"{type(self.model).__name__} is not laid out as {self.family.title}: {error}; attach the model with its head, "
                "or compare the family file with this transformers"
            ) from None

    def _remember(self, conversation: Conversation) -> None:
        if not any(known is conversation for known in self._conversations):
            self._conversations.append(conversation)

    def _install(self, hooks: Hooks) -> None:
        compat.forget_compiled(self.model)
        hooks.install()
        # generate() opens a conversation. On the instance, so that removing it restores the class's own.
        self._own_generate = self.model.__dict__.get("generate")
        self.model.__dict__["generate"] = Generate(self, self.model.generate)
        self._installed = True

    def _uninstall(self, hooks: Hooks) -> None:
        hooks.remove()
        compat.forget_compiled(self.model)
        if self._installed:
            self.model.__dict__.pop("generate", None)
            if self._own_generate is not None:
                self.model.__dict__["generate"] = self._own_generate
        self._installed = False

    def detach(self) -> None:
        """Take everything back. Calling it twice does nothing. Calls that other threads are running end first.

        Raises:
            AttachError: within a forward call of the model.
        """
        with self._activity.settled(CHANGING):
            if self.is_attached:
                self._uninstall(self._hooks)
                del ATTACHED[self.model]
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
        with self._swapped(self.plan, None):
            yield

    @contextmanager
    def using(self, plan: Any) -> Iterator[Attachment]:
        """Another plan inside the block, for one call or a comparison: all that `attach` takes as a plan."""
        other = self._read(plan)
        with self._swapped(other, lambda: self._make_hooks(other)):
            yield self

    @contextmanager
    def _swapped(self, plan: Plan, make: Callable[[], Hooks] | None) -> Iterator[None]:
        """Other hooks inside the block, or none; those of before come back afterwards."""
        with self._activity.settled(CHANGING):
            self._require_attached()
            before, hooks, was_installed = self.plan, self._hooks, self._installed
            other = None if make is None else make()
            self._uninstall(hooks)
            if other is not None:
                self.plan, self._hooks = plan, other
                self._install(other)
        try:
            yield
        finally:
            with self._activity.settled(CHANGING):
                if other is not None:
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
        token = open_block(conversation := Conversation(self, prompt_length=prompt_length))
        try:
            yield conversation
        finally:
            close_block(token)

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
        live = self.last.measured.live
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
        return tuple(conversation.trace for conversation in self._conversations)

    @property
    def modules(self) -> Mapping[Stage, nn.Module]:
        """The modules of the plan's learned methods, by their stage; empty for a plan without any."""
        return self._hooks.modules

    def report(self) -> Report:
        """Visual tokens, FLOPs and KV bytes of the last conversation, theory and measured.

        Raises:
            AttachError: if nothing that the plan acts on has passed the model yet.
        """
        return report_of(self.model, self.family, self.plan, self.last)

    def __reduce__(self) -> Any:
        raise AttachError(NO_COPY)

    def __repr__(self) -> str:
        return f"<{self.plan} on {type(self.model).__name__}{'' if self.is_attached else ', detached'}>"

    def __str__(self) -> str:
        estimate = estimate_of(self.model, self.family, self.plan, self._conversations[-1]) if self._conversations else None
        return str(self.plan) if estimate is None else f"{self.plan}: {estimate.summary()}"
