"""Files that commands write: refused before the work begins where they cannot be, one clear line where writing fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foveate.errors import InputError


def check_file(option: str, path: Path | None) -> None:
    """Raise InputError unless the path that an option names can become a file; None is no file."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option} {path}: that is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: {path.parent} does not exist or is no folder; name a file in a folder that exists")


def write(files: Mapping[Path, bytes]) -> None:
    """Write files into folders that exist.

    Raises:
        InputError: if one cannot be written.
    """
    for path, content in files.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
