"""Which rows of the vision encoder belong to which medium of the prompt, and what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.layout import Layout
from foveate.core.shape import MediumShape
from foveate.core.view import Observation
from foveate.engine.encoder_state import EncodedRow
from foveate.engine.forward import Pass
from foveate.errors import InputError


def matched_rows(running: Pass) -> dict[int, list[EncodedRow]]:
    """The encoder's rows of each medium of this pass, by the medium's key in the trace.

    Raises:
        InputError: if the encoder saw more or fewer pictures than the prompt has.
    """
    return running.shared.once("encoded", running.left.layout, lambda: _matched(running))


def encoder_values(running: Pass, need: Observation, hidden: Tensor) -> Tensor:
    """What was measured inside the encoder, at the columns of its visual tokens: [B, S, ...] fp32, zeros elsewhere.

    Args:
        running: the pass.
        need: what a stage asked for.
        hidden: [B, n, D] states of the pass.

    Raises:
        InputError: if a picture was encoded before this call, where nobody measured.
    """
    return running.shared.once(("encoded", need), running.left.layout, lambda: _values(running, need, hidden))


def _values(running: Pass, need: Observation, hidden: Tensor) -> Tensor:
    matched, layout, out = matched_rows(running), running.left.layout, None
    for key, medium in enumerate(layout.media, start=running.left.first_medium):
        if key not in matched or any(need not in row.observed for row in matched[key]):
            raise InputError(
                f"{need} is measured inside the vision encoder, but features of a picture of row {medium.row} were encoded "
                "before this call: pass pixel values, or choose by features alone"
            )
        values = spread(medium.shape, [row.observed[need] for row in matched[key]]).to(hidden.device)
        if out is None:
            out = values.new_zeros(*layout.real.shape, *values.shape[1:])
        out[medium.row, medium.columns.to(hidden.device, non_blocking=True)] = values
    assert out is not None
    return out


def spread(shape: MediumShape, values: Sequence[Tensor]) -> Tensor:
    """[n, ...] numbers for each grid token of a medium, from those [units, ...] of each of its rows of the encoder."""
    if not shape.canvases:
        return torch.cat(list(values))
    parts, start = [], 0
    for canvas in shape.canvases:
        units = torch.stack(list(values[start : start + canvas.rows])).movedim((0, 1), (-2, -1))
        parts.append(canvas.spread(units).movedim(-1, 0))
        start += canvas.rows
    return torch.cat(parts)


def _matched(running: Pass) -> dict[int, list[EncodedRow]]:
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
