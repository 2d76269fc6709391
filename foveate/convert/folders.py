"""Output folders of conversions: what they may replace, and a list of what is in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from foveate.errors import InputError
from foveate.files.folders import appearing
from foveate.files.paths import refused, shown
from foveate.files.reading import read_json

_SLACK = 32 * 2**20  # headers, configs, the tokenizer
# Lists the files of a conversion, so that a later one knows what it may replace.
WRITTEN = "foveate_converted.json"


def check_target(target: Path, sources: Iterable[Path], overwrite: bool, size_bytes: int) -> None:
    """Refuse a place that is taken, holds the source or lies in it, or is too small.

    Raises:
        InputError: one line that says which.
    """
    with refused("write", target):
        place = Path(os.path.realpath(target))
        for source in map(Path, map(os.path.realpath, sources)):
            if source.is_relative_to(place):
                raise InputError(f"{shown(target)} holds what is converted: name another folder")
            if place.is_relative_to(source):
                raise InputError(f"{shown(target)} lies in what is converted: name a folder outside of it")
        if os.path.lexists(place):
            _check_taken(target, place, overwrite)
        if not place.parent.is_dir():
            raise InputError(f"the folder {shown(place.parent)} does not exist: make it first")
        free, needed = shutil.disk_usage(place.parent).free, size_bytes + _SLACK
    if free < needed:
        raise InputError(
            f"{shown(place.parent)} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed: free some, or use "
            "another disk"
        )


@contextmanager
def converted_folder(target: Path, sources: Iterable[Path], overwrite: bool, size_bytes: int) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends without an error.

    Raises:
        InputError: as `check_target`, also for what has changed since it was asked, and for what the system refuses.
    """
    with appearing(target) as partial:
        check_target(target, sources, overwrite, size_bytes)
        with refused("write", target):
            yield partial
            files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
            (partial / WRITTEN).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def _check_taken(target: Path, place: Path, overwrite: bool) -> None:
    if not place.is_dir():
        raise InputError(f"{shown(target)} is a file: name a folder that does not exist yet")
    if not overwrite:
        raise InputError(f"{shown(target)} exists: name another folder, or add --overwrite to replace it")
    foreign = _foreign(place)
    if foreign:
        raise InputError(
            f"{shown(target)} holds {shown(foreign)}, which no conversion wrote, and is not replaced: name another folder"
        )


def _foreign(folder: Path) -> str:
    """A file or folder that this program did not write, "" if there is none."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    written = {WRITTEN}
    if (folder / WRITTEN).is_file():
        listed = read_json(folder / WRITTEN)
        files = listed.get("files") if isinstance(listed, dict) else None
        written |= {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()
    return min((str(path) for path in found if str(path) not in written), default="")
