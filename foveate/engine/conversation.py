"""What lives for one generate() call: its inputs, where its prompt ends, its layout and its trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from torch import Tensor

from foveate.core.layout import Layout
from foveate.core.trace import Trace
from foveate.engine.encoder_state import EncodedRow


@dataclass
class Encodings:
    """What the vision encoder gave in a conversation.

    Attributes:
        rows: images, crops and frames that no pass has matched yet, in order.
        matched: those of each medium, by (batch row, number): chunks and steps without a cache come again.
        features: what the encoder gave in a generate() call without a cache, by the model's function for it (`encode_once`).
    """

    rows: list[EncodedRow] = field(default_factory=list)
    matched: dict[tuple[int, int], list[EncodedRow]] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """What the calls of a conversation left to be looked at.

    Attributes:
        prefill_kv_bytes: bytes in the cache after the last prefill pass, read off the cache; None without a cache, or for a
            quantized one.
        live: [B, S] bool, the columns of the last prefill pass that reach the last layer; None before one.
        ignored: for each pass with labels, how many were predicted from pruned positions and left out of the loss.
    """

    prefill_kv_bytes: int | None = None
    live: Tensor | None = None
    ignored: list[Tensor] = field(default_factory=list)


@dataclass
class Place:
    """Where a conversation stands among others, and the cache that its calls share.

    Attributes:
        outer: the conversation that was open when this one's first call came, if it is a call within generate().
        nested: such conversations within this one.
    """

    outer: Conversation | None = None
    nested: list[Conversation] = field(default_factory=list)
    _cache: ref[Any] | None = None

    def hold(self, cache: Any) -> None:
        """Note the cache that the conversation's calls share. Weakly: it is the caller's."""
        self._cache = ref(cache)

    def holds(self, cache: Any) -> bool:
        """Whether this cache is known to be the conversation's."""
        return cache is not None and self._cache is not None and self._cache() is cache

    @property
    def has_cache(self) -> bool:
        """Whether a cache is known, and is there still."""
        return self._cache is not None and self._cache() is not None


@dataclass
class Conversation:
    """One generate() call, or one block of bare forwards opened by `attachment.conversation()`.

    Attributes:
        owner: the attachment it belongs to.
        inputs: keyword arguments of generate: grids and pixel values that forward no longer sees once encoded.
        prompt_length: columns of the prompt; what follows is output. None until known.
        layout: of the prompt, one row per sample (beams are not repeated), once the first pass has found it.
        copies: rows per sample: beams or return sequences.
        shift: columns that a wrapper put in front of generate's prompt (prompt tuning, prefix tuning).
        begun: columns that were in the cache before its first call.
        seen: columns after the last pass, as far as this conversation has counted them; None before its first.
        past: columns that were in the cache before the last prefill pass.
        trace: what the stages kept.
        measured: what its calls left to be looked at.
        encodings: what the vision encoder gave.
        place: where it stands among other conversations.
    """

    owner: object
    inputs: Mapping[str, Any] = field(default_factory=dict)
    prompt_length: int | None = None
    layout: Layout | None = None
    copies: int = 1
    shift: int = 0
    begun: int = 0
    seen: int | None = None
    past: int = 0
    trace: Trace = field(default_factory=Trace)
    measured: Measured = field(default_factory=Measured)
    encodings: Encodings = field(default_factory=Encodings)
    place: Place = field(default_factory=Place)

    @property
    def prompt_end(self) -> int | None:
        """Columns in front of the first output column, those of a wrapper included; None until known."""
        return None if self.prompt_length is None else self.prompt_length + self.shift

    def let_go(self) -> None:
        """Pixels and caches are the caller's again when generate() ends, and features are freed; the trace stays."""
        self.inputs, self.encodings.features, self.place.nested = {}, {}, []

    def columns_in(self, cache: Any, queries: int) -> int:
        """Columns in a cache before a pass of `queries` columns.

        A static cache counts on its device, so at decode steps, which are many, the conversation's own count is taken.
        """
        if cache is None:
            return 0
        length = cache.get_seq_length()
        if isinstance(length, Tensor) and queries == 1 and self.seen is not None:
            return self.seen
        return int(length)

    @property
    def ignored_labels(self) -> int:
        """Labels left out of the loss because they would be predicted from a pruned position."""
        return sum(int(count) for count in self.measured.ignored)


_open: ContextVar[tuple[Conversation, ...]] = ContextVar("foveate_conversations", default=())


def open_conversation(owner: object) -> Conversation | None:
    """The innermost open conversation of an attachment in this context."""
    for conversation in reversed(_open.get()):
        if conversation.owner is owner:
            return conversation
    return None


def open_block(conversation: Conversation) -> Any:
    """Open a conversation; returns the token for `close_block`."""
    return _open.set((*_open.get(), conversation))


def close_block(token: Any) -> None:
    """Close what `open_block` opened."""
    _open.reset(token)
