"""Checkpoints of a training: whole ones are listed, damaged ones are named, nothing that was pickled runs."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foveate.errors import FoveateError, InputError, first_line
from foveate.files.reading import open_regular, read_json
from foveate.files.writing import write_file

WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"
# Written last: {file: [bytes, CRC-32]} of all others.
WHOLE = "whole.json"
_NEEDED = (WEIGHTS, STATE, "optimizer.pt", "scheduler.pt")
_PIECE = 2**24


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end.

    Raises:
        InputError: naming the file, if one of it is gone or is not what was written; or a later one that looks complete and
            is not listed as whole.
    """
    found = {
        int(match[1]): path for path in out.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d{1,12})", path.name))
    }
    whole = {step: path for step, path in found.items() if (path / WHOLE).is_file()}
    for step, path in sorted(found.items()):
        if step > max(whole, default=-1) and all((path / name).is_file() for name in _NEEDED):
            # Cut off at its very end, or written before checkpoints were listed: not to be passed over in silence.
            raise InputError(
                f"{path} has no {WHOLE}, so nobody knows whether it is whole: delete it to continue from the one before, or "
                "from the beginning"
            )
    if not whole:
        return None
    step = max(whole)
    _check(whole[step], step)
    return whole[step]


@contextmanager
def written_whole(folder: Path, writes: bool) -> Iterator[None]:
    """List a checkpoint as whole after the block; what an error leaves of it is removed, so that the one before is used.

    Raises:
        InputError: if it cannot be written, on a full disk for example.
    """
    try:
        if writes:
            (folder / WHOLE).unlink(missing_ok=True)
        yield
        if writes:
            marks = {path.name: _mark(path) for path in sorted(folder.iterdir()) if path.is_file()}
            write_file(folder / WHOLE, json.dumps(marks, indent=2) + "\n")
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        if writes:
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"{folder} cannot be written ({first_line(error)}): make room, then continue from the one before with --resume"
        ) from None


@contextmanager
def read_from(folder: Path) -> Iterator[None]:
    """Make one line of whatever reading a checkpoint meets.

    Raises:
        InputError: naming the checkpoint.
    """
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:  # whatever the unpickler, the optimizer or the scheduler makes of what it finds
        raise InputError(
            f"{folder} is damaged ({first_line(error)}): delete this folder to continue from the checkpoint before"
        ) from None


def _check(folder: Path, step: int) -> None:
    marks = read_json(folder / WHOLE)
    if not isinstance(marks, dict):
        raise InputError(f"{folder / WHOLE} is damaged: delete {folder} to continue from the checkpoint before")
    for name in sorted({*marks, *_NEEDED}):
        path = folder / name
        if Path(name).name != name or not path.is_file() or marks.get(name) != _mark(path):
            what = "is not what was written" if path.is_file() else "is missing"
            raise InputError(f"{path} {what}: put it back, or delete {folder} to continue from the checkpoint before")
    state = read_json(folder / STATE)
    if not isinstance(state, dict) or state.get("global_step") != step or not isinstance(state.get("log_history"), list):
        raise InputError(f"{folder / STATE} is not of step {step}: delete {folder} to continue from the checkpoint before")


def _mark(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    size = sum_so_far = 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            size, sum_so_far = size + len(piece), zlib.crc32(piece, sum_so_far)
    return [size, sum_so_far]
