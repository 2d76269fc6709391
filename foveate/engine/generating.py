"""generate() of a model that carries a plan: one conversation from its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

from foveate.engine import cache_kinds
from foveate.engine.carrying import CHANGING, NO_COPY
from foveate.engine.conversation import Conversation, close_block, open_block
from foveate.engine.notices import say_once
from foveate.errors import AttachError, FoveateError, UnsupportedCombination

if TYPE_CHECKING:
    from foveate.engine.attachment import Attachment

_NOT_COMPILED = (
    "compile_config has no effect under a gate, which decides at each step outside of any compiled graph: leave it out, or "
    "leave out the gate"
)
# Older names of caches that can be pruned, as published checkpoints have them.
_OLD_NAMES = (None, "dynamic_full", "hybrid", "hybrid_chunked", "sliding_window")


class Generate:
    """generate() of one model instance, inside a conversation."""

    def __init__(self, attachment: Attachment, generate: Any) -> None:
        self._attachment, self._generate = attachment, generate
        update_wrapper(self, generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attachment = self._attachment
        conversation = self._conversation(args, kwargs)
        kwargs = self._uncompiled(kwargs)
        with CHANGING:  # not while another thread changes hooks
            running = attachment._activity.generating()
        token = open_block(conversation)
        try:
            return self._generate(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, FoveateError):
                attachment._hooks.prompts.explain(conversation)
            raise
        finally:
            close_block(token)
            conversation.let_go()
            attachment._hooks.settle()
            attachment._activity.over(running)

    def _uncompiled(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments with decode steps on a static cache left uncompiled, if a gate decides at each of them."""
        if self._attachment.plan.gate is None or kwargs.get("disable_compile"):
            return kwargs
        configs = (kwargs.get("generation_config"), getattr(self._attachment.model, "generation_config", None))
        if any(
            one is not None for one in (kwargs.get("compile_config"), *(getattr(c, "compile_config", None) for c in configs))
        ):
            say_once(self._attachment, _NOT_COMPILED)
        return {**kwargs, "disable_compile": True}

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AttachError(NO_COPY)

    def __deepcopy__(self, memo: Any) -> Any:
        raise AttachError(NO_COPY)

    def _conversation(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Conversation:
        inputs = dict(kwargs)
        if args and "input_ids" not in inputs:
            inputs["input_ids"] = args[0]
        if inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs["inputs"]
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        prompt = ids if ids is not None else embeds
        configs = (inputs.get("generation_config"), getattr(self._attachment.model, "generation_config", None))
        kinds = [inputs.get("cache_implementation"), *(getattr(config, "cache_implementation", None) for config in configs)]
        kind = next((kind for kind in kinds if kind is not None), None)
        if kind not in (*cache_kinds.NAMES, *_OLD_NAMES) and self._attachment.plan.stages:
            raise UnsupportedCombination(
                f"cache_implementation='{kind}' cannot hold a pruned cache: use {', '.join(cache_kinds.NAMES)}, "
                "or detach the plan"
            )
        if prompt is None:
            return Conversation(self._attachment)  # generate itself says what is missing
        return Conversation(self._attachment, inputs=inputs, prompt_length=prompt.shape[1])
