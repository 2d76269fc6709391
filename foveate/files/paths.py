"""Paths as users write them, and what the system says about them, in one line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foveate.errors import FoveateError, InputError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)  # pathlib leaves one of two slashes
_SHOWN = 200  # characters of a path in a message
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def user_path(text: str | Path) -> Path:
    """A path as it was typed, with `~` and `~name` replaced by the home folder.

    Raises:
        InputError: for an empty path, an address, a zero byte, and the home of a user that does not exist.
    """
    if not str(text):
        raise InputError("the path is empty: name a file or folder")
    if "\0" in str(text):
        raise InputError(f"{shown(text)}: a path holds no zero byte")
    if _ADDRESS.match(str(text)):
        raise InputError(f"{shown(text)} is an address, and nothing is fetched from the network: download it and name the file")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{shown(text)}: no such user; write the whole path, or ./~ for a name that starts with ~") from None


def shown(path: str | os.PathLike[str]) -> str:
    """A path for messages: long ones are cut in the middle."""
    text = os.fspath(path)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


@contextmanager
def refused(doing: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Make one line, `cannot DOING PATH: why`, of whatever the system refuses about a path within the block.

    Raises:
        InputError: in place of OSError, and of the ValueErrors of paths that no system can have.
    """
    try:
        yield
    except FoveateError:
        raise
    except OSError as error:
        raise InputError(f"cannot {doing} {shown(path)}: {reason(error)}") from None
    except UnicodeEncodeError:
        raise InputError(f"cannot {doing} {shown(path)}: the name holds half of a character (a lone surrogate)") from None
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise InputError(f"cannot {doing} {shown(path)}: a path holds no zero byte") from None


def reason(error: OSError) -> str:
    """What the system says, without numbers and paths."""
    return error.strerror or str(error) or type(error).__name__


def kind(mode: int) -> str:
    """What a `st_mode` that is no regular file is, in words."""
    return next((words for matches, words in _KINDS if matches(mode)), "no regular file")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there; False for every name that the system refuses too."""
    return os.path.isfile(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there; False for every name that the system refuses too."""
    return os.path.isdir(path)


def check_folder(path: Path, what: str = "folder") -> None:
    """Refuse a path that is no folder that can be listed.

    Raises:
        InputError: one line that says why.
    """
    with refused(f"read the {what}", path):
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise InputError(f"{shown(path)} is a file: name a folder")
        os.scandir(path).close()
