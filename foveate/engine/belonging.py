"""Which conversation a call of the model belongs to.

While generate() runs, somebody else may call the model too: a stopping criterion that scores a text, a logits processor with a
negative prompt. The layout of generate's prompt says nothing about such a call, which gets a conversation of its own. Calls of
one cache belong together; without a cache a call belongs to generate() if it begins with generate's prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.engine import compat
from foveate.engine.conversation import Conversation, Place, open_conversation


def conversation_of(owner: object, call: Mapping[str, Any], source: Tensor) -> Conversation:
    """The conversation of a call with these arguments, whose ids or embeddings are `source`."""
    open_one, cache = open_conversation(owner), compat.cache_of(call)
    if open_one is None:
        return Conversation(owner)
    for known in (open_one, *open_one.place.nested):
        if known.place.holds(cache):
            return known
    if _belongs(open_one, cache, source):
        if cache is not None:
            open_one.place.hold(cache)
        return open_one
    other = Conversation(owner, place=Place(outer=open_one))
    if cache is not None:
        other.place.hold(cache)
    open_one.place.nested.append(other)
    return other


def settle(conversation: Conversation, output: Any) -> None:
    """Note the cache that a call without one was given, after the call. A call that has none is forgotten."""
    if conversation.place.outer is not None and not conversation.place.has_cache:
        cache = compat.cache_in(output)
        if cache is None:
            conversation.place.outer.place.nested.remove(conversation)
        else:
            conversation.place.hold(cache)


def _belongs(conversation: Conversation, cache: Any, source: Tensor) -> bool:
    """Whether a call with a cache that nobody knows, or without one, is of the conversation that is open."""
    if not conversation.inputs:  # opened by hand, for the calls in its block
        return True
    if conversation.place.has_cache:
        return False
    given = compat.cache_of(conversation.inputs)
    if given is not None or cache is not None:
        return given is None or given is cache
    return conversation.seen is None or _begins_with(conversation.inputs, source)


def _begins_with(inputs: Mapping[str, Any], source: Tensor) -> bool:
    """Whether a call repeats generate's prompt, for as many rows as beams ask for. Waits for the device."""
    name = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
    prompt: Tensor = inputs[name]
    copies, rest = divmod(source.shape[0], prompt.shape[0])
    if rest or source.ndim != prompt.ndim or source.shape[1] < prompt.shape[1]:
        return source.ndim != prompt.ndim and not rest  # embeddings that a wrapper made of the ids
    return torch.equal(source[:, : prompt.shape[1]].to(prompt.device), prompt.repeat_interleave(copies, dim=0))
