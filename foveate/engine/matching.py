"""Which rows of the vision encoder belong to which medium of the prompt."""

from __future__ import annotations

from foveate.core.layout import Layout
from foveate.engine.encoder_state import EncodedRow
from foveate.engine.forward import Pass
from foveate.errors import InputError


def matched_rows(running: Pass) -> dict[int, list[EncodedRow]]:
    """The encoder's rows of each medium of this pass, by the medium's key in the trace.

    Raises:
        InputError: if the encoder saw more or fewer pictures than the prompt has.
    """
    conversation = running.conversation
    in_generate = bool(conversation.inputs) and conversation.layout is not None
    pictures = conversation.encodings.matched if in_generate else {}
    if conversation.encodings.rows:
        rows = list(conversation.encodings.rows)
        conversation.encodings.rows.clear()
        if in_generate:
            assert conversation.layout is not None
            pictures = conversation.encodings.matched = _dealt(rows, conversation.layout, conversation.copies)
        else:
            pictures = _dealt(rows, running.left.layout, 1)
    numbered = enumerate(running.left.layout.media, start=running.left.first_medium)
    return {key: pictures[at] for key, medium in numbered if (at := (medium.row, medium.index)) in pictures}


def _dealt(rows: list[EncodedRow], layout: Layout, copies: int) -> dict[tuple[int, int], list[EncodedRow]]:
    """Rows of the encoder by (batch row, number) of their medium, where each sample of the layout has `copies` batch rows.

    Beams and return sequences share one encoding where transformers encodes before it repeats the prompt.
    """
    expected = sum(medium.shape.encoder_rows for medium in layout.media)
    if len(rows) == expected * copies:
        layout, copies = layout.repeated(copies), 1
    elif len(rows) != expected:
        raise InputError(
            f"the vision encoder saw {len(rows)} images, crops or frames in this conversation, but the prompt's media have "
            f"{expected}: give each picture of the prompt once, and encode others outside of the conversation"
        )
    dealt, start = {}, 0
    # Transformers encodes all images of a call, then all videos.
    for medium in sorted(layout.media, key=lambda medium: medium.shape.kind == "video"):
        stop = start + medium.shape.encoder_rows
        for copy in range(copies):
            dealt[medium.row * copies + copy, medium.index] = rows[start:stop]
        start = stop
    return dealt
