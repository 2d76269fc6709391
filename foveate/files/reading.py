"""Bounded reading: regular files only, never more than was said, UTF-8 and JSON that are nothing else."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from foveate.errors import InputError
from foveate.files.paths import kind, refused, shown

MIB = 2**20
# Bytes: of a JSON or text file that is read at once, and of one line of a longer one.
MOST_BYTES, LONGEST_LINE = 64 * MIB, 16 * MIB
DEEPEST = 64  # lists and objects in each other
_DIGITS = 19  # of whole numbers: 64 bits
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def open_regular(path: str | Path, most: int | None = None, what: str = "file") -> BinaryIO:
    """Open a regular file for reading bytes. Pipes, devices and sockets are refused without being opened.

    Args:
        path: of the file.
        most: the largest size in bytes; None for any.
        what: the word for it in messages: "picture", "video".

    Raises:
        InputError: one line that says what is wrong with the path, the file or its size.
    """
    with refused(f"read the {what}", path):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            raise InputError(f"no {what} at {shown(path)}") from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{shown(path)} is {kind(found.st_mode)}: name a {what}")
        if most is not None and found.st_size > most:
            raise InputError(f"{shown(path)} has {_size(found.st_size)}; a {what} of up to {_size(most)} is read")
        return open(path, "rb")


def read_bytes(path: str | Path, most: int = MOST_BYTES, what: str = "file") -> bytes:
    """The content of a regular file of at most so many bytes; refusals as of `open_regular`."""
    with open_regular(path, most, what) as file, refused(f"read the {what}", path):
        content = file.read(most + 1)
    if len(content) > most:  # files of the system say that they are empty
        raise InputError(f"{shown(path)} has more than {_size(most)}; a {what} of up to that size is read")
    return content


def read_text(path: str | Path, most: int = MOST_BYTES, what: str = "text file") -> str:
    """The text of a regular UTF-8 file of at most so many bytes, without a byte order mark; refusals as of `open_regular`."""
    return _decoded(read_bytes(path, most, what), shown(path))


def read_json(path: str | Path, most: int = MOST_BYTES) -> Any:
    """The value of a JSON file, as `parse_json` reads it; refusals as of `open_regular`."""
    return parse_json(read_text(path, most, "JSON file"), shown(path))


def json_lines(path: str | Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, Any]]:
    """The lines of a JSONL file as they are needed: (number from 1, value); as `json_rows`."""
    return ((number, value) for number, _, _, value in json_rows(path, longest))


def json_rows(path: str | Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, int, int, Any]]:
    """The lines of a JSONL file as they are needed: (number from 1, first byte, bytes, value); blank ones are left out.

    Args:
        path: of a file of any size.
        longest: bytes of one line.

    Raises:
        InputError: with the number of the line, for what `parse_json` refuses; otherwise as `open_regular`.
    """
    with open_regular(path, what="data") as file, refused("read", path):
        number = start = 0
        while line := file.readline(longest + 1):
            number += 1
            where = f"{shown(path)}, line {number}"
            if len(line) > longest:
                raise InputError(f"{where} is longer than {_size(longest)}: write one JSON object in each line")
            text = _decoded(line, where).strip()
            if text:
                yield number, start, len(line), parse_json(text, where)
            start += len(line)


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON and nothing else: no NaN or infinity, no key twice in an object, whole numbers of up to 19 digits, no halves
            of characters, at most 64 lists and objects in each other.
        where: how messages begin.

    Raises:
        InputError: one line that says where and why.
    """

    def whole(digits: str) -> int:
        length = len(digits.lstrip("-"))
        if length > _DIGITS:
            raise InputError(f"{where}: a whole number of {length} digits; up to {_DIGITS} are read")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise InputError(f"{where}: the number {digits[:20]} is too large")
        return value

    def constant(name: str) -> float:
        raise InputError(f"{where}: {name} is no JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{where}: '{twice}' is given twice in one object")
        return made

    if _depth_exceeds(text, DEEPEST):
        raise InputError(f"{where}: lists and objects lie more than {DEEPEST} deep in each other")
    try:
        value = json.loads(text, parse_int=whole, parse_float=real, parse_constant=constant, object_pairs_hook=once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(f"{where} is not JSON: {error.msg}, {line}column {error.colno}") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: holds half of a character (a lone surrogate, \\ud800 to \\udfff)") from None
    return value


def _depth_exceeds(text: str, most: int) -> bool:
    if text.count("[") + text.count("{") <= most:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        mark = found[0]
        depth += (mark in "[{") - (mark in "]}") if len(mark) == 1 else 0
        if depth > most:
            return True
    return False


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    raise AssertionError
