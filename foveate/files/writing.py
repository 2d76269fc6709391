"""The one writer of files: checked before the work begins, and whole or not at all after it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from foveate.errors import InputError
from foveate.files.partial import partial_path, remove, remove_stale, sync_folder
from foveate.files.paths import kind, refused, shown

Content = str | bytes | Callable[[BinaryIO], object]


def check_outputs(targets: Mapping[str, Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse files that could not be written in the end. Call it before the work begins.

    Args:
        targets: files to write, by the option that names each; None is no file.
        inputs: files and folders that the command reads; nothing is written over or into them.

    Raises:
        InputError: naming the option, and what to do.
    """
    read = [path for path in inputs if path is not None]
    taken: dict[str, Path] = {}
    for option, path in targets.items():
        if path is None:
            continue
        where = f"{option} {shown(path)}"
        with refused(f"write {option}", path):
            _check_file(where, path)
            for source in read:
                if _covers(Path(source), path):
                    raise InputError(f"{where}: that is what is read ({shown(source)}); name another file")
        for other, before in taken.items():
            if _same(before, path):
                raise InputError(f"{where}: {other} is the same file; name two")
        taken[option] = path


def check_output_folder(option: str, folder: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """The same of a folder that files are written into; it and its parents may be missing yet."""
    where = f"{option} {shown(folder)}"
    with refused(f"write {option}", folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise InputError(f"{where} is a file: name a folder")
        for source in (path for path in inputs if path is not None):
            if _same(Path(source), folder):
                raise InputError(f"{where}: that is what is read; name another folder")
        place = folder.absolute()
        while not os.path.lexists(place):
            _check_name(place)
            place = place.parent
        _check_folder(where, place)


def write_file(path: str | Path, content: Content) -> None:
    """Write one file; see `write_files`."""
    write_files({Path(path): content})


def write_files(files: Mapping[Path, Content]) -> None:
    """Write files into folders that exist. All of them are on the disk before the first takes its name.

    Args:
        files: by path, text (UTF-8), bytes, or a function that writes to an open file. A link is written through to its file;
            a file that is there keeps its rights.

    Raises:
        InputError: if one cannot be written; then every file that was there before is as it was, or is new and whole.
    """
    partials: list[tuple[Path, Path]] = []
    try:
        for path, content in files.items():
            with refused("write", path):
                target = Path(os.path.realpath(path))
                remove_stale(target.parent)
                partials.append((target, partial_path(target.parent)))
                _write(partials[-1][1], target, content)
        for target, partial in partials:
            with refused("write", target):
                os.replace(partial, target)
                sync_folder(target.parent)
    finally:
        for _, partial in partials:
            remove(partial)


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Take a name that must be free, by an empty file; it goes away again if nothing was written over it.

    Raises:
        InputError: if it exists, or cannot be made.
    """
    with refused("write", path):
        try:
            path.open("xb").close()
        except FileExistsError:
            raise InputError(f"{shown(path)} exists and is not written over: name another file") from None
    try:
        yield
    finally:
        with suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if need be.

    Raises:
        InputError: if it cannot be made.
    """
    with refused("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def _write(partial: Path, target: Path, content: Content) -> None:
    # As open() would: new files by the process's mask, others keep their rights.
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), "w+b") as file:
        with suppress(OSError):
            before = os.stat(target)
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        if isinstance(content, str):
            file.write(content.encode())
        elif isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(file.fileno())


def _check_file(where: str, path: Path) -> None:
    if os.path.islink(path) and os.path.realpath(path) == os.path.abspath(path):
        os.stat(path)  # a link in a circle: the system says so
    target = Path(os.path.realpath(path))
    _check_name(target)
    if os.path.lexists(target):
        found = os.stat(target)
        if not stat.S_ISREG(found.st_mode):
            inside = " in it" if stat.S_ISDIR(found.st_mode) else ""
            raise InputError(f"{where}: that is {kind(found.st_mode)}; name a file{inside}")
        # The rights of the file bind replacing it too, though the system asks for those of the folder alone.
        if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
            raise InputError(f"{where} is read-only: make it writable, or name another file")
    _check_folder(where, target.parent)


def _check_name(path: Path) -> None:
    """Raise what the system says of a name that it could never hold."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)


def _check_folder(where: str, folder: Path) -> None:
    if os.path.isfile(folder):
        raise InputError(f"{where}: {shown(folder)} is a file; name a folder there")
    if not os.path.isdir(folder):
        raise InputError(f"{where}: {shown(folder)} does not exist or is no folder; name a file in a folder that exists")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # the only answer that also holds for root and read-only disks
    except OSError as error:
        raise InputError(f"{where}: nothing can be written in {shown(folder)}: {error.strerror or error}") from None


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, through links of both kinds, or would become one."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _covers(source: Path, target: Path) -> bool:
    """Whether a target is a source, or lies in one that is a folder."""
    return _same(source, target) or (os.path.isdir(source) and any(_same(source, one) for one in _parents(target)))


def _parents(path: Path) -> Iterator[Path]:
    yield from Path(os.path.realpath(path)).parents
