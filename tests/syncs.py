"""Counting host syncs without an accelerator: CPU tensors that play device tensors and note when a value is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import foveate

_READS = {
    "item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "unique", "masked_select", "equal", "allclose",
    "__bool__", "__int__", "__float__", "__index__", "bincount", "unique_consecutive",
}  # fmt: skip
_LEAVES = {"cpu", "tolist", "numpy", "item"}
_OURS = str(Path(foveate.__file__).parent)
_noted: list[str] = []
_within = [_OURS]


class OnDevice(Tensor):
    """A tensor that passes its nature on to everything computed from it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        # Only a literal "cpu" is the host here: the stand-in's own device has that name too.
        to_host = name == "to" and "cpu" in [part for part in args[1:] if isinstance(part, str)]
        if (name in _READS or to_host or _boolean_index(name, args)) and (place := _caller()) is not None:
            _noted.append(f"{name} at {place}")
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.as_subclass(Tensor) if name in _LEAVES and isinstance(out, Tensor) else out


def _boolean_index(name: str, args: Any) -> bool:
    if name not in ("__getitem__", "__setitem__"):
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)


def _caller() -> str | None:
    """Where the innermost frame outside torch is, or None if it is not in the folder that is looked at."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and file != __file__:
            return f"{Path(file).name}:{frame.f_lineno}" if file.startswith(_within[-1]) else None
        frame = frame.f_back
    return None


@contextmanager
def syncs_of_foveate() -> Iterator[list[str]]:
    """Where foveate reads values of `OnDevice` tensors within the block."""
    with _syncs_of(_OURS) as noted:
        yield noted


@contextmanager
def syncs_of_anybody() -> Iterator[list[str]]:
    """Where anything reads values of `OnDevice` tensors within the block."""
    with _syncs_of("") as noted:
        yield noted


@contextmanager
def _syncs_of(folder: str) -> Iterator[list[str]]:
    _noted.clear()
    _within.append(folder)
    try:
        yield _noted
    finally:
        _within.pop()


def on_device(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs, playing device tensors."""
    return {name: value.as_subclass(OnDevice) for name, value in inputs.items()}


@contextmanager
def weights_on_device(model: nn.Module) -> Iterator[None]:
    """A model whose embedding table gives device tensors, so that everything computed from it is one."""
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, output: output.as_subclass(OnDevice))
    try:
        yield
    finally:
        handle.remove()
