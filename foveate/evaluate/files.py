"""Questions with pictures and answers, one JSON object in each line."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.files.paths import is_file, shown, user_path
from foveate.files.reading import json_lines

_FIELDS = ("image", "question", "answer")


@dataclass(frozen=True)
class Item:
    """One line of a file: pictures, a question, and the answer that counts as right."""

    name: str
    images: tuple[Path, ...]
    question: str
    answer: str


def read_items(path: Path, most: int | None = None, pictures: Path | None = None) -> list[Item]:
    """Read a file of lines `{"image": "a.jpg", "question": "...", "answer": "..."}`.

    Args:
        path: of the file. `image` may be a list. Other fields are not read.
        most: at most so many, the first ones.
        pictures: the folder that names of pictures start from; the file's own by default.

    Raises:
        InputError: naming the line that does not fit, before any picture is read; without any line.
    """
    folder = path.parent if pictures is None else pictures
    items = [_item(f"{path}, line {number}", folder, number, fields) for number, fields in islice(json_lines(path), most)]
    if not items:
        raise InputError(f"{path} has no line with {', '.join(_FIELDS)}")
    return items


def _item(where: str, folder: Path, number: int, fields: Any) -> Item:
    if not isinstance(fields, dict):
        raise InputError(f"{where}: write an object with {', '.join(_FIELDS)}")
    images: Any = fields.get("image")
    names: list[Any] = images if isinstance(images, list) else [images]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{where}: image must be a file name, or a list of some")
    for field in _FIELDS[1:]:
        if not isinstance(fields.get(field), str) or not fields[field].strip():
            raise InputError(f"{where}: {field} must be text")
    found = tuple(folder / user_path(name) for name in names)
    missing = next((place for place in found if not is_file(place)), None)
    if missing is not None:
        raise InputError(f"{where}: no picture at {shown(missing)}")
    return Item(f"line {number}", found, fields["question"], fields["answer"])
