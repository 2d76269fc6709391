"""What happens while torch compiles the model: hooks leave the graph, but for decode steps on a static cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_compiled_step(states: Tensor, cache: Any) -> bool:
    """Whether torch.compile is tracing a decode step on a static cache: no stage acts, and the cache knows all it takes.

    Everything else that is traced while a plan is attached leaves the compiled graph for the hooks (`uncompiled`).
    """
    return torch.compiler.is_compiling() and states.shape[1] == 1 and cache is not None and cache.is_compileable


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook as it is, and out of the graph where torch.compile traces the module around it."""
    outside: Callable[..., Any] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

    def run(*args: Any, **kwargs: Any) -> Any:
        # Outside of compilation without the wrapper's cost: hooks run for every token and layer.
        return outside(*args, **kwargs) if torch.compiler.is_compiling() else hook(*args, **kwargs)

    return run
