"""Labels of a training call: those predicted from pruned positions stay out of the loss, the caller's tensor stays as it is."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from torch import Tensor

from foveate.engine.forward import Pass

# Labels travel from the top model's hook to the base model's hook of the same call.
_travelling: ContextVar[Tensor | None] = ContextVar("foveate_labels", default=None)


def send(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give a call labels of its own, to be edited once it is known which columns are gone; None for a call without labels.

    `names` are the names of the positional arguments.
    """
    labels = (dict(zip(names, args, strict=False)) | kwargs).get("labels")
    if labels is None:
        return None
    own = labels.clone()
    _travelling.set(own)
    if "labels" in kwargs:
        return args, {**kwargs, "labels": own}
    return tuple(own if value is labels else value for value in args), kwargs


def take() -> Tensor | None:
    """The labels on their way, if any; they have arrived now."""
    labels = _travelling.get()
    if labels is not None:
        _travelling.set(None)
    return labels


def ignore_lost(running: Pass) -> None:
    """Leave labels out of the loss that would be predicted from a pruned position."""
    if running.labels is None or running.survivors is None:
        return
    labels = running.labels
    lost = running.survivors.dead[:, :-1].to(labels.device) & (labels[:, 1:] != -100)
    labels[:, 1:].masked_fill_(lost, -100)
    running.conversation.measured.ignored.append(lost.sum())
