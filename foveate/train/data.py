"""Conversations on disk: LLaVA's JSON and chat messages as JSON lines. A file is scanned once, rows are read when asked for.

A conversation is a list of chat messages as processors take them: `{"role", "content": [{"type": "text", ...}, ...]}`, with
opened pictures. Rows whose pictures are missing or broken are left out and counted.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveate.api.pictures import load_image
from foveate.errors import InputError
from foveate.files.paths import is_file, is_folder, refused, shown, user_path
from foveate.files.reading import LONGEST_LINE, json_lines, json_rows, open_regular, parse_json

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_CHUNK = 1 << 20
_GAP = re.compile(r"[ \t\r\n]*")
# Finds where a value ends; `parse_json` says what it is.
_READS = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode

Messages = list[dict[str, Any]]


class Conversations(Protocol):
    """What a training reads.

    Attributes:
        shuffles: whether rows are seen in a random order; False for rows that are drawn at random anyway.
    """

    shuffles: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Messages: ...


class ConversationFile(Dataset[Messages]):
    """The usable rows of a file.

    Args:
        path: `.json` with a list, or `.jsonl` with a row in each line. A row is LLaVA's (`conversations`, `image`) or chat
            messages (`messages`).
        pictures: the folder that paths of pictures start from; the file's own by default.

    Raises:
        InputError: in one line, for a file that cannot be read, a row that is no conversation, or no usable row.
    """

    shuffles = True

    def __init__(self, path: str | Path, pictures: str | Path | None = None) -> None:
        self.path = user_path(path)
        self.pictures = user_path(pictures) if pictures is not None else self.path.parent
        open_regular(self.path, what="data").close()
        if not is_folder(self.pictures):
            raise InputError(f"no folder of pictures at {shown(self.pictures)}")
        self.missing = 0
        self._word = "line" if self.path.suffix == ".jsonl" else "row"
        self._numbers, self._starts, self._lengths = array("q"), array("q"), array("q")
        known: dict[str, bool] = {}
        for number, start, length, row in _rows(self.path):
            messages = self._messages(row, f"{self.path.name}, {self._word} {number}")
            if all(self._is_there(known, picture) for picture in pictures_of(messages)):
                self._numbers.append(number)
                self._starts.append(start)
                self._lengths.append(length)
            else:
                self.missing += 1
        if not len(self._starts):
            raise InputError(
                f"{self.path} has no usable row: {self.missing} rows name pictures that are not in {self.pictures}"
            )
        # Shared with worker processes, who are the ones that open pictures.
        self._broken: Tensor = torch.zeros(len(self._starts), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Messages:
        """The conversation of a row, with opened pictures; of the next usable row if one of its pictures is broken."""
        for step in range(len(self)):
            at = (index + step) % len(self)
            if self._broken[at]:
                continue
            messages = self.read(at)
            if self._open(messages):
                return messages
            self._broken[at] = 1
        raise InputError(f"{self.path} has no usable row: none of its pictures can be read")

    def name(self, index: int) -> str:
        """Where a row stands: `line 3`, counted from 1, or `row 3` of a list, counted from 0."""
        return f"{self._word} {self._numbers[index]}"

    @property
    def broken(self) -> Tensor:
        """[rows] uint8, 1 at rows whose pictures could not be read so far."""
        return self._broken

    def read(self, index: int) -> Messages:
        """The conversation of a row as it stands in the file: pictures are paths."""
        where = f"{self.path.name}, {self.name(index)}"
        with open_regular(self.path, what="data") as file, refused("read", self.path):
            file.seek(self._starts[index])
            content = file.read(self._lengths[index])
        return self._messages(parse_json(content.decode(errors="replace"), where), where)

    def _messages(self, row: Any, where: str) -> Messages:
        if isinstance(row, dict) and isinstance(row.get("conversations"), list):
            messages = from_llava(row, where)
        elif isinstance(row, dict) and isinstance(row.get("messages"), list):
            messages = from_chat(row["messages"], where)
        else:
            raise InputError(f"{where}: a row has 'conversations' (LLaVA) or 'messages' (chat)")
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError(f"{where}: no turn of the assistant, so there is nothing to learn")
        return messages

    def _is_there(self, known: dict[str, bool], picture: str) -> bool:
        # Many rows share a picture, and asking a network disk is slow.
        if picture not in known:
            known[picture] = is_file(self.pictures / picture)
        return known[picture]

    def _open(self, messages: Messages) -> bool:
        """Replace paths by pictures; returns whether all could be read."""
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            try:
                part["image"] = load_image(self.pictures / part["image"])
            except InputError:
                return False
        return True


def holds_conversations(path: Path) -> bool:
    """Whether a file is one for `ConversationFile`, by its name or its first row, rather than of another kind of lines."""
    if path.suffix != ".jsonl":
        return path.suffix == ".json"
    try:
        _, row = next(json_lines(path), (0, None))
    except InputError:
        return False
    return isinstance(row, dict) and ("conversations" in row or "messages" in row)


def from_llava(row: Mapping[str, Any], where: str) -> Messages:
    """Messages of LLaVA's format; `<image>` stands where a picture is, or in front of the first question if it is missing."""
    pictures = row.get("image") or []
    pictures = list(pictures) if isinstance(pictures, list) else [pictures]
    if not all(isinstance(picture, str) and picture for picture in pictures):
        raise InputError(f"{where}: image is a file name, or a list of some")
    turns = [_turn(turn, where) for turn in row["conversations"]]
    marks = sum(text.count(PLACEHOLDER) for _, text in turns)
    messages: Messages = []
    if marks not in (0, len(pictures)):
        raise InputError(f"{where}: {marks} times {PLACEHOLDER}, but {len(pictures)} pictures")
    queue = iter(pictures)
    for role, text in turns:
        content: list[dict[str, Any]] = []
        if not marks and role == "user":
            content += [{"type": "image", "image": picture} for picture in queue]
        for number, piece in enumerate(text.split(PLACEHOLDER)):
            if number:
                content.append({"type": "image", "image": next(queue)})
            if piece.strip():
                content.append({"type": "text", "text": piece.strip()})
        messages.append({"role": role, "content": content})
    return _checked(messages, where)


def _turn(turn: Any, where: str) -> tuple[str, str]:
    said = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if not isinstance(said[0], str) or said[0] not in ROLES or not isinstance(said[1], str):
        raise InputError(f"{where}: a turn is {{'from': 'human' or 'gpt', 'value': text}}")
    return ROLES[said[0]], said[1]


def from_chat(rows: list[Any], where: str) -> Messages:
    """Messages of the chat format, with contents as lists; pictures are files, named by `image`, `path` or `url`."""
    messages: Messages = []
    for row in rows:
        role, given = (row.get("role"), row.get("content")) if isinstance(row, dict) else (None, None)
        if not isinstance(role, str) or role not in ROLES or not isinstance(given, str | list):
            raise InputError(f"{where}: a message is {{'role': 'user' or 'assistant', 'content': text or a list of parts}}")
        parts = [{"type": "text", "text": given}] if isinstance(given, str) else [_part(part, where) for part in given]
        messages.append({"role": ROLES[role], "content": parts})
    return _checked(messages, where)


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        source = next((part[key] for key in ("image", "path", "url") if isinstance(part.get(key), str)), None)
        if source is not None and "://" not in source:
            return {"type": "image", "image": source}
        raise InputError(f"{where}: a picture is a file, {{'type': 'image', 'image': 'a/b.png'}}; download it first")
    raise InputError(f"{where}: parts of a message are of type text or image")


def _checked(messages: Messages, where: str) -> Messages:
    for message in messages:
        texts = [part for part in message["content"] if part["type"] == "text"]
        if message["role"] == "assistant" and len(texts) != len(message["content"]):
            raise InputError(f"{where}: the assistant answers with text only")
    return messages


def pictures_of(messages: Messages) -> list[Any]:
    """The pictures of a conversation, in order: paths, or opened."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def _rows(path: Path) -> Iterator[tuple[int, int, int, Any]]:
    """(number, first byte, bytes, value) of every row; lines count from 1, items of a list from 0."""
    if path.suffix == ".jsonl":
        yield from json_rows(path)
    elif path.suffix == ".json":
        yield from _items(path)
    else:
        raise InputError(f"{shown(path)}: data is a .json file with a list, or a .jsonl file with a row in each line")


def _items(path: Path) -> Iterator[tuple[int, int, int, Any]]:
    """The items of a list, without ever holding more than one of them and a chunk of the file."""
    try:
        with open_regular(path, what="data") as file, refused("read", path):
            scan = _Scan(file, path.name)
            if scan.peek() != "[":
                raise InputError(f"{path.name} is no list of conversations: it starts with '{scan.peek()}'")
            scan.take("[")
            number, more = 0, scan.peek() != "]"
            while more:
                scan.peek()
                start, text = scan.byte, scan.value()
                yield number, start, len(text.encode()), parse_json(text, f"{path.name}, row {number}")
                number, more = number + 1, scan.peek() == ","
                if more:
                    scan.take(",")
            scan.take("]")
            scan.take("")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8 text: {error.reason}") from None


class _Scan:
    """A JSON text that is read in chunks. `byte` of the file is character `at` of the buffer."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._buffer, self._at, self._ended = "", 0, False
        self.byte = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(self.byte)

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            gap = _GAP.match(self._buffer, self._at)
            assert gap is not None
            self._advance(gap.end())
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._refill()

    def take(self, mark: str) -> None:
        """Go past a mark that must come next; the end of the file is the empty one."""
        found = self.peek()
        if found != mark:
            wanted = f"'{mark}'" if mark else "nothing more"
            raise InputError(f"{self._name} is not a JSON list at byte {self.byte}: {wanted} belongs there, not '{found}'")
        self._advance(self._at + len(mark))

    def value(self) -> str:
        """The text of the value that comes next."""
        while True:
            try:
                _, end = _READS(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._ended or len(self._buffer) - self._at > LONGEST_LINE:
                    raise InputError(f"{self._name} is not JSON at byte {self.byte}: {error.msg}; is it complete?") from None
                self._refill()
            except RecursionError:
                raise InputError(f"{self._name} at byte {self.byte}: lists and objects lie too deep in each other") from None
            else:
                text = self._buffer[self._at : end]
                self._advance(end)
                return text

    def _advance(self, at: int) -> None:
        self.byte += len(self._buffer[self._at : at].encode())
        self._at = at

    def _refill(self) -> None:
        chunk = self._file.read(_CHUNK)
        self._buffer, self._at = self._buffer[self._at :] + self._decoder.decode(chunk, not chunk), 0
        self._ended = not chunk
