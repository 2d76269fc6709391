"""The vision encoder runs once in an answer without a KV cache, though each of its steps reads the whole prompt again.

Where transformers hands pixels to every such step (`compat.encodes_beforehand` says where not), what the model's own
`get_image_features` and `get_video_features` gave at the first one is given again. Scattering, masks, positions and stacked
features stay the model's work, as if its encoder had run; stages inside the encoder keep the choice and the marks of that step.

Only within one generate() call and for the very same tensors: between bare calls weights, adapters and the plan may change.
Only without a cache: with one, pictures are encoded once anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from foveate.engine import forward

_NAMES = ("get_image_features", "get_video_features")
# What an encoder gives besides the rows that stand in the prompt: states that were not projected yet, and attention.
_BESIDES = ("last_hidden_state", "hidden_states", "attentions")
# Place or name of an argument, its value, and the version of a tensor's content.
_Argument = tuple[int | str, Any, int | None]


@dataclass(frozen=True)
class Features:
    """What a model's function for features gave, and for what.

    Attributes:
        arguments: of the call. They hold its tensors, so that no other one can take their identity.
        output: of what the function gave, what the model reads; the rows [N, D] of visual tokens among it.
    """

    arguments: tuple[_Argument, ...]
    output: ModelOutput

    def are_of(self, arguments: tuple[_Argument, ...]) -> bool:
        """Whether these arguments are the same objects or memory, unchanged, or equal numbers and words."""
        pairs = zip(self.arguments, arguments, strict=False)
        return len(arguments) == len(self.arguments) and all(_same(old, new) for old, new in pairs)


def _same(old: _Argument, new: _Argument) -> bool:
    (old_name, known, old_version), (name, value, version) = old, new
    equal = value is known or (isinstance(value, (int, float, str)) and value == known) or _one_memory(known, value)
    return name == old_name and version == old_version and equal


def _one_memory(known: Any, value: Any) -> bool:
    """Whether two tensors are one piece of memory read in one way, as slices are that MiniCPM-V cuts at every step."""
    if not (isinstance(known, Tensor) and isinstance(value, Tensor) and known.numel()):
        return False
    first, second = ((one.device, one.dtype, one.shape, one.stride(), one.data_ptr()) for one in (known, value))
    return first == second


def _told(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[_Argument, ...]:
    """The arguments of a call as `Features` hold them."""
    named: list[tuple[int | str, Any]] = [*enumerate(args), *sorted(kwargs.items())]
    return tuple((name, value, _version(value)) for name, value in named)


def _version(value: Any) -> int | None:
    """Counts the writes into a tensor; those made in inference mode do not count theirs, but within an answer nobody writes."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _needed(output: ModelOutput) -> ModelOutput:
    """What a model reads of its encoder's output: what was pooled or projected, else the last states."""
    pooled = getattr(output, "pooler_output", None)
    besides = _BESIDES if pooled is not None else _BESIDES[1:]
    kept: ModelOutput = type(output)(**{name: value for name, value in output.items() if name not in besides})
    if pooled is not None and kept.get("pooler_output") is None:
        kept.pooler_output = pooled  # beside its fields: GOT-OCR 2 in early versions
    return kept


class _Function:
    """A model's function for features, that does not encode the same pictures twice within an answer without a cache."""

    def __init__(self, owner: object, name: str, encode: Callable[..., Any]) -> None:
        self._owner, self._name, self._encode = owner, name, encode
        update_wrapper(self, encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A compiled model encodes inside its graph, where no conversation is looked up.
        running = None if torch.compiler.is_compiling() else forward.current(self._owner)
        if running is None or running.cached or not running.conversation.inputs:
            return self._encode(*args, **kwargs)
        conversation, told = running.conversation, _told(args, kwargs)
        known = conversation.encodings.features.get(self._name)
        if known is not None and known.are_of(told):
            return known.output
        others = {name: features for name, features in conversation.encodings.features.items() if name != self._name}
        output = self._encode(*args, **kwargs)
        if isinstance(output, ModelOutput):
            # Over what was noted meanwhile: some models encode videos by calling their function for images.
            conversation.encodings.features = {**others, self._name: Features(told, _needed(output))}
        return output


class EncodeOnce:
    """Puts these functions on the instance of a model's base, in front of its class's own, until `remove` is called.

    Args:
        owner: the attachment, as the key of passes.
        base: the module that merges text and media.
    """

    def __init__(self, owner: object, base: nn.Module) -> None:
        self._base = base
        # What somebody else put on the instance comes back, as with generate().
        self._own = {name: vars(base).get(name) for name in _NAMES if hasattr(base, name)}
        for name in self._own:
            vars(base)[name] = _Function(owner, name, getattr(base, name))

    def remove(self) -> None:
        """Give the instance back what it had."""
        for name, own in self._own.items():
            del vars(self._base)[name]
            if own is not None:
                vars(self._base)[name] = own
