"""The grammar of specs: text -> calls with unconverted values. Knows no method.

spec  = call { "|" call }           call  = name [ "(" [ word "=" value { "," word "=" value } ] ")" ]
value = "[" value { "," value } "]" | number ".." number | quoted string | bare word

A spec has at most 20,000 characters, a list 1,000 items and 8 brackets within each other, so that any text is read or refused
at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from foveate.errors import SpecError


@dataclass(frozen=True)
class Bare:
    """An unquoted value: a number, a percentage, a count or a word, converted by whoever knows what is expected."""

    text: str


Value: TypeAlias = "Bare | str | tuple[Value, ...]"

MOST_CHARACTERS, MOST_ITEMS, MOST_DEPTH = 20_000, 1_000, 8
_TOKEN = re.compile(r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<punctuation>[()\[\],=|])|(?P<bare>[^\s()\[\],=|"']+))""")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Call:
    """A name with its words in the order written."""

    name: str
    words: dict[str, Value]


def parse_calls(text: str) -> list[Call]:
    """Read a spec.

    Raises:
        SpecError: with the place where reading stopped.
    """
    if not isinstance(text, str):
        raise SpecError(f'a spec is a text such as "fastv(layer=2, keep=0.5)", not {type(text).__name__}')
    if len(text) > MOST_CHARACTERS:
        raise SpecError(f"this spec has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read: store the plan as JSON")
    tokens = _tokens(text)
    if not tokens:
        raise SpecError('empty spec: write e.g. "fastv(layer=2, keep=0.5)"')
    parser = _Parser(text, tokens)
    calls = [parser.call()]
    while parser.accept("|"):
        calls.append(parser.call())
    parser.end()
    return calls


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise SpecError(f"cannot read spec {text!r} from {text[position:]!r} on: a quote is not closed")
        kind = str(match.lastgroup)
        tokens.append((kind, match.group(kind)))
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, text: str, tokens: list[tuple[str, str]]) -> None:
        self.text, self.tokens, self.position = text, tokens, 0

    def call(self) -> Call:
        name = self.name("a method or recipe name")
        words: dict[str, Value] = {}
        if self.accept("("):
            while not self.accept(")"):
                word = self.name("an option")
                self.expect("=")
                if word in words:
                    raise SpecError(f"{name}: {word} is given twice")
                words[word] = self.value()
                if not self.accept(","):
                    self.expect(")")
                    break
        return Call(name, words)

    def value(self, depth: int = 0) -> Value:
        if self.accept("["):
            if depth == MOST_DEPTH:
                raise SpecError(f"cannot read spec {self.text!r}: more than {MOST_DEPTH} brackets stand within each other")
            items: list[Value] = []
            while not self.accept("]"):
                item = self.value(depth + 1)
                items += item if isinstance(item, tuple) else (item,)  # [5..8, 12] is one list
                if len(items) > MOST_ITEMS:
                    raise SpecError(f"a list of more than {MOST_ITEMS} items: no plan needs as many, shorten it")
                if not self.accept(","):
                    self.expect("]")
                    break
            return tuple(items)
        kind, token = self.next("a value")
        if kind == "quoted":
            return token[1:-1]
        if kind != "bare":
            raise self.error("a value", token)
        span = _RANGE.fullmatch(token)
        if span:
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise SpecError(f"range {token} runs backwards: write {last}..{first}")
            if last - first >= MOST_ITEMS:
                raise SpecError(f"range {token} has {last - first + 1} numbers, at most {MOST_ITEMS} are read")
            return tuple(Bare(str(number)) for number in range(first, last + 1))
        return Bare(token)

    def name(self, what: str) -> str:
        kind, token = self.next(what)
        if kind != "bare" or not _NAME.fullmatch(token):
            raise self.error(what, token)
        return token

    def next(self, what: str) -> tuple[str, str]:
        if self.position == len(self.tokens):
            raise self.error(what, "the end")
        self.position += 1
        return self.tokens[self.position - 1]

    def accept(self, punctuation: str) -> bool:
        here = self.position < len(self.tokens) and self.tokens[self.position] == ("punctuation", punctuation)
        self.position += here
        return here

    def expect(self, punctuation: str) -> None:
        if not self.accept(punctuation):
            found = self.tokens[self.position][1] if self.position < len(self.tokens) else "the end"
            raise self.error(f"'{punctuation}'", found)

    def end(self) -> None:
        if self.position < len(self.tokens):
            raise self.error("'|' or the end", self.tokens[self.position][1])

    def error(self, expected: str, found: str) -> SpecError:
        return SpecError(f"cannot read spec {self.text!r}: expected {expected}, found {found!r}")
