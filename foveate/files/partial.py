"""Names of unfinished files and folders, and their removal when the process that made them is gone."""

from __future__ import annotations

import itertools
import os
import platform
import re
import shutil
from contextlib import suppress
from pathlib import Path

_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:40] or "host"
_NAME = re.compile(rf"\.foveate-{_HOST}-(\d+)-\d+\.partial")
_counter = itertools.count()


def partial_path(folder: Path) -> Path:
    """A new name in a folder. It says which process writes there; it does not grow with the target's name."""
    return folder / f".foveate-{_HOST}-{os.getpid()}-{next(_counter)}.partial"


def remove_stale(folder: Path) -> None:
    """Remove what processes of this machine that no longer run left unfinished in a folder."""
    with suppress(OSError):
        for name in os.listdir(folder):
            found = _NAME.fullmatch(name)
            if found and not _runs(int(found[1])):
                remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Make names in a folder last, where the system can."""
    with suppress(OSError):  # not every file system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no number of a process
        return True
    return True
