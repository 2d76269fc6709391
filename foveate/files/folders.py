"""Whole folders that appear at once, and locks for those that two processes could write."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from foveate.errors import InputError
from foveate.files.partial import partial_path, remove, remove_stale, sync_folder
from foveate.files.paths import refused, shown

_AT_FDCWD, _EXCHANGE = -100, 2  # of renameat2(2)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new folder beside `target`; when the block ends without an error it takes that name and the place of what is there.

    A link is followed: the folder that it names is replaced. Two writers are kept apart by `locked`.

    Raises:
        InputError: if the system refuses the folder, or another process writes it.
    """
    target = Path(os.path.realpath(target))
    with locked(target):
        recover(target)
        with refused("write", target):
            partial = partial_path(target.parent)
            partial.mkdir()
        try:
            yield partial
            with refused("write", target):
                _sync(partial)
                _swap(partial, target)
                sync_folder(target.parent)
        finally:
            remove(partial)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes a folder. The lock lies beside it and goes when the process does.

    Raises:
        InputError: if another process, or another thread, has it.
    """
    folder = Path(os.path.realpath(folder))
    name = hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:16]
    path = folder.parent / f".foveate-{name}.lock"
    with refused("write", folder):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process is writing {shown(folder)}: wait for it, or name another folder") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()


def recover(target: Path) -> None:
    """Undo what a killed `appearing` left: what was moved aside comes back if nothing took its place, partials go."""
    aside = _aside(target)
    if os.path.lexists(aside):
        if os.path.lexists(target):
            remove(aside)
        else:
            os.rename(aside, target)
    remove_stale(target.parent)


def _swap(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`. What was there is then called `partial`, or is gone."""
    if not os.path.lexists(target):
        os.rename(partial, target)
    elif not _exchange(partial, target):
        aside = _aside(target)
        os.rename(target, aside)
        try:
            os.rename(partial, target)
        except OSError:
            os.rename(aside, target)
            raise
        remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once, so that neither is ever missing; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0)


def _aside(target: Path) -> Path:
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.parent / f".foveate-{name}.old"


def _sync(folder: Path) -> None:
    """Make every file of a folder last."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
