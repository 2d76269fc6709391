"""Measuring attention rows from the queries and keys that a layer has anyway. No N x N tensor is ever made.

During one call of one attention module, `module.config` is a stand-in that names our probe as the attention implementation.
The probe sees queries and keys after every norm and rotation that the architecture applies, measures, and calls the
implementation that would have run. The model's own config never changes, so masks keep their format. Which call is to be
measured stands in a context variable: another thread that uses the model meanwhile sees its own implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from foveate.engine import compat

PROBE = "foveate_probe"

Callback = Callable[[Tensor, Tensor, Any, float | None, float | None], None]

# In this context: module (by id) -> what to do with its queries and keys; None once that has been done.
_NOTHING: Mapping[int, Callback | None] = MappingProxyType({})
_armed: ContextVar[Mapping[int, Callback | None]] = ContextVar("foveate_armed", default=_NOTHING)
_lock = Lock()
# Who may arm modules: the probe is known to transformers as long as there is somebody.
_users: WeakSet[object] = WeakSet()


def enable(user: object) -> None:
    """Make the probe known to transformers for a user of it."""
    with _lock:
        _users.add(user)
        compat.register_attention(PROBE, probe)


def disable(user: object) -> None:
    """End a user's need of the probe; the last one takes it away. Calling it twice does nothing."""
    with _lock:
        _users.discard(user)
        if not _users:
            compat.unregister_attention(PROBE)


class ProbeConfig:
    """The config an attention module shows while calls of it are measured; `users` counts them over all threads."""

    def __init__(self, wrapped: Any, module: nn.Module) -> None:
        self.__dict__.update(wrapped=wrapped, module=id(module), users=0)

    def __getattr__(self, name: str) -> Any:
        if name == "_attn_implementation" and _armed.get().get(self.__dict__["module"]) is not None:
            return PROBE
        return getattr(self.__dict__["wrapped"], name)


def implementation(module: nn.Module) -> str:
    """The attention implementation that a module has, also while calls of it are measured."""
    config = module.config.wrapped if isinstance(module.config, ProbeConfig) else module.config
    return str(config._attn_implementation)  # type: ignore[union-attr]


class EveryCall:
    """A callback that stays armed for all attention calls within one call of the module, which may have one per sequence."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback

    def __call__(self, query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
        self.callback(query, key, mask, scaling, softcap)


def arm(module: nn.Module, callback: Callback) -> None:
    """Measure this context's next call of an attention module."""
    disarm(module)  # an interrupt may have left the callback of a call that never came
    with _lock:
        if not isinstance(module.config, ProbeConfig):
            module.config = ProbeConfig(module.config, module)  # type: ignore[assignment]
        module.config.__dict__["users"] += 1
    _armed.set({**_armed.get(), id(module): callback})


def disarm(module: nn.Module) -> None:
    """End this context's measuring, whether or not the call got as far as its attention function."""
    if id(module) not in _armed.get():
        return
    _armed.set({key: value for key, value in _armed.get().items() if key != id(module)})
    with _lock:
        config = module.config
        if isinstance(config, ProbeConfig):
            config.__dict__["users"] -= 1
            if config.__dict__["users"] == 0:
                module.config = config.wrapped


def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
    """The attention function that stands in: measure, then delegate."""
    armed = dict(_armed.get())
    callback = armed[id(module)]
    armed[id(module)] = None  # from here on the module shows its real implementation: flash reads the name once more
    _armed.set(armed)
    assert callback is not None
    callback(query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"))
    function = compat.attention_function(module, module.config._attn_implementation)  # type: ignore[arg-type, union-attr]
    result = function(module, query, key, value, attention_mask, *args, **kwargs)
    if isinstance(callback, EveryCall):
        _armed.set({**_armed.get(), id(module): callback})
    return result
