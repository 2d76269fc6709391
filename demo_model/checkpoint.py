"""The checkpoint of a demo training: written whole or not at all, read without running anything that it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foveate.errors import FoveateError, InputError, first_line
from foveate.files.reading import open_regular
from foveate.files.writing import write_file

CHECKPOINT = "checkpoint.pt"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "phase": str,
    "step": int,
    "steps": int,
    "elapsed": (int, float),
    "weights": dict,
    "optimizers": list,
    "model": dict,
}


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Replace the checkpoint.

    Raises:
        InputError: if it cannot be written; the one before is still there.
    """
    try:
        write_file(path, lambda file: torch.save(dict(checkpoint), file))
    except RuntimeError as error:  # torch's own error for a full disk
        raise InputError(
            f"{path} cannot be written ({first_line(error)}): make room and continue; the last one is whole"
        ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint, its weights only: nothing else that was pickled is opened.

    Raises:
        InputError: if it is damaged, or none.
    """
    open_regular(path, what="checkpoint").close()
    with checkpoint_readable(path):
        found = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(found, dict):
            raise ValueError("it holds no run")
        for name, kind in _KINDS.items():
            if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
                raise ValueError(f"it holds no {name}")
        if found["phase"] not in ("vision", "joint", "done") or found["step"] < 0 or not math.isfinite(found["elapsed"]):
            raise ValueError("its phase, step or time is none")
    return found


@contextmanager
def checkpoint_readable(path: Path) -> Iterator[None]:
    """Make one line of whatever reading a damaged checkpoint meets."""
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:  # the unpickler and the optimizers raise what they like
        raise InputError(f"{path} is damaged ({first_line(error)}): delete it to start anew, or choose another --out") from None
