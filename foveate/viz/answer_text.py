"""An answer as its tokens say it, and which of them a gate stored: what the views of gated decoding draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

# A decoder writes this for the bytes of a character that has only begun.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class AnswerText:
    """The tokens of one answer.

    Attributes:
        pieces: the text that each token adds, see `pieces_of`.
        kept: for each token whether the layers after the gate stored it; None for one that was never judged: the newest
            token of an answer never enters the model.
    """

    pieces: tuple[str, ...]
    kept: tuple[bool | None, ...]

    @property
    def stored(self) -> int:
        """Tokens that were stored."""
        return sum(kept is True for kept in self.kept)

    @property
    def judged(self) -> int:
        """Tokens that the gate judged."""
        return sum(kept is not None for kept in self.kept)

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    def runs(self) -> list[tuple[bool | None, str]]:
        """Neighbours of one fate joined: (fate, text)."""
        grouped = groupby(zip(self.kept, self.pieces, strict=True), key=lambda pair: pair[0])
        return [(kept, "".join(piece for _, piece in own)) for kept, own in grouped]


@dataclass(frozen=True)
class AnswerHeading:
    """What the views say around the text.

    Attributes:
        plain: what the plain model answers; None if it says the same.
        kv_bytes: bytes in the cache at the end: held, left once rejected slots are taken away, and without the gate; None if
            they are not known.
    """

    question: str
    plan: str
    model: str
    plain: str | None
    kv_bytes: tuple[int, int, int] | None


def count_line(answer: AnswerText, heading: AnswerHeading, shown: Callable[[float], str]) -> str:
    """How much was stored: `73 of 146 tokens stored after the gate; KV cache ...`. `shown` writes bytes."""
    line = f"{answer.stored} of {answer.judged} tokens stored after the gate"
    if heading.kv_bytes is None:
        return line
    held, lasting, ungated = heading.kv_bytes
    now = "" if held == lasting else f" ({shown(held)} until rejected slots are taken away)"
    return f"{line}; KV cache at the end {shown(lasting)}{now}, without the gate {shown(ungated)}"


def pieces_of(decode: Callable[[list[int]], str], ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds. A token that only begins a character adds nothing; its character comes with its end.

    Args:
        decode: token ids to text.
        ids: of the answer.
    """
    out: list[str] = []
    start = read = 0  # texts are compared from `start`: some decoders drop the space in front of the first token
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:read])), decode(list(ids[start:end]))
        if now.endswith(_UNFINISHED) and end < len(ids):
            out.append("")
            continue
        out.append(now[len(before) :])
        start, read = read, end
    return tuple(out)


def wrapped(pieces: Sequence[str], width: int) -> list[list[tuple[int, int, str]]]:
    """Lines of at most `width` characters, broken between words: in each (token, column where it begins, text).

    Args:
        pieces: the text of each token.
        width: characters, at least 1.
    """
    text = "".join(pieces)
    owner = [token for token, piece in enumerate(pieces) for _ in piece]
    lines: list[list[tuple[int, str]]] = [[]]  # characters with their tokens
    for word in re.finditer(r"\n|[^\S\n]*[^\s]+|[^\S\n]+", text):
        if word.group() == "\n":
            lines.append([])
            continue
        characters = list(zip(owner[word.start() : word.end()], word.group(), strict=True))
        if lines[-1] and len(lines[-1]) + len(characters) > width:
            lines.append([])
            while len(characters) > 1 and characters[0][1].isspace():
                characters.pop(0)
        while len(characters) > width:
            lines[-1] += characters[:width]
            characters = characters[width:]
            lines.append([])
        lines[-1] += characters
    return [_segments(line) for line in lines]


def _segments(line: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    out, column = [], 0
    for token, own in groupby(line, key=lambda pair: pair[0]):
        text = "".join(character for _, character in own)
        out.append((token, column, text))
        column += len(text)
    return out
