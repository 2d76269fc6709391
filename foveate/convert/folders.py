"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foveate.errors import InputError

_SLACK = 32 * 2**20  # headers, configs, the tokenizer


def check_target(target: Path, source: Path, overwrite: bool, size_bytes: int) -> None:
    """Refuse a place that is taken, holds the source, or is too small.

    Raises:
        InputError: one line that says which.
    """
    if target.exists():
        if not target.is_dir():
            raise InputError(f"{target} is a file: name a folder that does not exist yet")
        if source.resolve().is_relative_to(target.resolve()):
            raise InputError(f"{target} holds what is converted: name another folder")
        if not overwrite:
            raise InputError(f"{target} exists: name another folder, or add --overwrite to replace it")
        if any(target.iterdir()) and not (target / "config.json").is_file():
            raise InputError(f"{target} holds no model and is not replaced: name another folder")
    parent = target.absolute().parent
    if not parent.is_dir():
        raise InputError(f"the folder {parent} does not exist: make it first")
    free, needed = shutil.disk_usage(parent).free, size_bytes + _SLACK
    if free < needed:
        raise InputError(
            f"{parent} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed: free some, or use another disk"
        )


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new folder beside `target`; when the block ends without an error it takes that name, and the place of what is there."""
    target = target.absolute()
    partial, old = (target.with_name(f".{target.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        replaced = target.exists()
        if replaced:
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if replaced:
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
