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
from typing import Any, Protocol

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from foveate.errors import InputError

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_CHUNK = 1 << 20
_LONGEST_ROW = 1 << 26  # characters; a longer one is a mistake in the file
_GAP = re.compile(r"[ \t\r\n,]*")

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
        self.path = Path(path)
        self.pictures = Path(pictures) if pictures is not None else self.path.parent
        if not self.path.is_file():
            raise InputError(f"no data at {self.path}")
        if not self.pictures.is_dir():
            raise InputError(f"no folder of pictures at {self.pictures}")
        self.missing = 0
        self._starts, self._lengths = array("q"), array("q")
        known: dict[str, bool] = {}
        for number, (start, length, row) in enumerate(_rows(self.path)):
            messages = self._messages(row, f"{self.path.name}, row {number}")
            if all(self._is_there(known, picture) for picture in pictures_of(messages)):
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

    @property
    def broken(self) -> Tensor:
        """[rows] uint8, 1 at rows whose pictures could not be read so far."""
        return self._broken

    def read(self, index: int) -> Messages:
        """The conversation of a row as it stands in the file: pictures are paths."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            row = json.loads(file.read(self._lengths[index]))
        return self._messages(row, f"{self.path.name}, at byte {self._starts[index]}")

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
            known[picture] = (self.pictures / picture).is_file()
        return known[picture]

    def _open(self, messages: Messages) -> bool:
        """Replace paths by pictures; returns whether all could be read."""
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            try:
                with Image.open(self.pictures / part["image"]) as opened:
                    part["image"] = opened.convert("RGB")
            except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
                return False
        return True


def holds_conversations(path: Path) -> bool:
    """Whether a file is one for `ConversationFile`, by its name or its first row, rather than of another kind of lines."""
    if path.suffix != ".jsonl":
        return path.suffix == ".json"
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and ("conversations" in row or "messages" in row)


def from_llava(row: Mapping[str, Any], where: str) -> Messages:
    """Messages of LLaVA's format; `<image>` stands where a picture is, or in front of the first question if it is missing."""
    pictures = row.get("image") or []
    pictures = list(pictures) if isinstance(pictures, list) else [pictures]
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
    if said[0] not in ROLES or not isinstance(said[1], str):
        raise InputError(f"{where}: a turn is {{'from': 'human' or 'gpt', 'value': text}}")
    return ROLES[said[0]], said[1]


def from_chat(rows: list[Any], where: str) -> Messages:
    """Messages of the chat format, with contents as lists; pictures are files, named by `image`, `path` or `url`."""
    messages: Messages = []
    for row in rows:
        if not isinstance(row, dict) or row.get("role") not in ROLES or not isinstance(row.get("content"), str | list):
            raise InputError(f"{where}: a message is {{'role': 'user' or 'assistant', 'content': text or a list of parts}}")
        given = row["content"]
        parts = [{"type": "text", "text": given}] if isinstance(given, str) else [_part(part, where) for part in given]
        messages.append({"role": ROLES[row["role"]], "content": parts})
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


def _rows(path: Path) -> Iterator[tuple[int, int, Any]]:
    """(first byte, bytes, value) of every row."""
    try:
        if path.suffix == ".jsonl":
            yield from _lines(path)
        elif path.suffix == ".json":
            yield from _items(path)
        else:
            raise InputError(f"{path}: data is a .json file with a list, or a .jsonl file with a row in each line")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from None


def _lines(path: Path) -> Iterator[tuple[int, int, Any]]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield start, len(line), json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{path.name}, line {number}: not JSON: {error.msg}") from None
            start += len(line)


def _items(path: Path) -> Iterator[tuple[int, int, Any]]:
    """The items of a list, without ever holding more than one of them and a chunk of the file."""
    reads = json.JSONDecoder().raw_decode
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        buffer, at, byte, ended = "", 0, 0, False  # `byte` of the file is character `at` of the buffer

        def skip() -> int:
            gap = _GAP.match(buffer, at)
            assert gap is not None
            return gap.end()

        def refill() -> bool:
            nonlocal buffer, at
            chunk = file.read(_CHUNK)
            buffer, at = buffer[at:] + decoder.decode(chunk, not chunk), 0
            return bool(chunk)

        refill()
        at = byte = skip()
        if buffer[at : at + 1] != "[":
            raise InputError(f"{path.name} is no list of conversations: it starts with '{buffer[at : at + 1]}'")
        at, byte = at + 1, byte + 1
        while True:
            gap = skip()
            at, byte = gap, byte + gap - at
            if buffer[at : at + 1] == "]":
                return
            try:
                value, end = reads(buffer, at)
            except json.JSONDecodeError as error:
                if ended or len(buffer) - at > _LONGEST_ROW:
                    raise InputError(f"{path.name} is not JSON at byte {byte}: {error.msg}; is it complete?") from None
                ended = not refill()
                continue
            length = len(buffer[at:end].encode())
            yield byte, length, value
            at, byte = end, byte + length
