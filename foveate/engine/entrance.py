"""In front of the first decoder layer: what the stages inside the vision encoder left of each medium, and of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.layout import Medium
from foveate.core.shape import MediumShape
from foveate.core.tiled_trace import EncoderRecord
from foveate.core.trace import GroupRecord
from foveate.engine.encoder_state import EncodedRow
from foveate.engine.forward import Pass
from foveate.engine.matching import matched_rows, spread
from foveate.engine.notices import say_once
from foveate.engine.spans import Span
from foveate.errors import InputError, UnsupportedCombination

_OTHER_FEATURES = (
    "the features in the prompt are not those that the vision encoder gave for its pictures in this conversation: give each "
    "picture of the prompt once and in its order, unchanged"
)


def enter(running: Pass, hidden: Tensor, mixes: bool, check: bool) -> Tensor:
    """Drop the columns that the encoder's stages emptied; returns the states [B, n', D] of the others.

    How many columns stay is needed on the host, for it is the length of all that follows. Where a row of the encoder is a grid
    of tokens, budgets and shapes say it, and nothing is waited for: the layout's is then the one wait of a prefill. Tiles with
    padding and grids that bilinear interpolation shrinks keep a number that depends on which patches stayed (those in padding
    make no token, and a token lives while one of its patches does). Only the encoder's answers know it, and they come long
    after the layout, which the encoder's own stages need: for such pictures there is a second wait.

    Args:
        running: the pass, whose survivors are brought up to date.
        hidden: [B, S, D] states entering the first decoder layer. Where a visual token is gone they are NaN, or, where the
            model `mixes` neighbours, the linear map that it applies has met zeros in place of what is gone: divided by the
            part of the token that is left, they are the mean of the rest.
        check: compare what shapes say with what the marks say, which waits.

    Raises:
        InputError: if the encoder saw other pictures than the prompt has, or another conversation saw them.
    """
    left = running.left
    matched = matched_rows(running)
    media = dict(enumerate(left.layout.media, start=left.first_medium))
    coverage = _at_columns(
        running, hidden, matched, {key: [torch.ones_like(row.sizes) for row in matched[key]] for key in matched}
    )
    gone = coverage == 0
    for key, rows in matched.items():
        _choose(media[key], rows, coverage, gone)
    marked = ~hidden.any(-1) if mixes else hidden[..., 0].isnan()
    unknown = [medium for key, medium in media.items() if key not in matched]
    if unknown:
        _check_unknown(running, unknown, marked)
    shortened = [key for key, rows in matched.items() if any(len(row.units) < row.count for row in rows)]
    _refuse_unknown_end(running, [media[key] for key in shortened])
    if check and shortened and not mixes:
        _check_marks(gone, marked)
    counts = _count(media, matched, gone, check and bool(shortened))
    for key, rows in matched.items():
        _note(running, key, media[key], rows, gone, sum(counts[key]))
    if mixes and any(canvas.shrinks for key in matched for canvas in media[key].shape.canvases):
        mean = (hidden.float() / coverage.clamp(min=1e-6)[..., None]).to(hidden.dtype)
        hidden = torch.where(((coverage > 0) & (coverage < 1))[..., None], mean, hidden)
    if all(sum(pieces) == media[key].shape.grid_tokens for key, pieces in counts.items()):
        return hidden
    sizes = _at_columns(running, hidden, matched, {key: [row.sizes for row in matched[key]] for key in matched})
    keys = {(medium.row, medium.index): key for key, medium in media.items()}
    left.leave(gone, [_left(span, counts.get(keys[span.row, span.medium]), gone, sizes) for span in left.spans])
    shorter = left.shorten(0, hidden)
    alive = left.alive
    assert alive is not None
    # A hole of a shorter row may be a marked column, and 0 * nan is nan.
    return shorter if alive.all_valid else shorter.masked_fill(~alive.valid[..., None], 0)


def _check_marks(gone: Tensor, marked: Tensor) -> None:
    """Refuse features whose marks are not where the encoder's stages left them. A picture that holds NaN is its own affair."""
    if bool((gone & ~marked).any()):
        raise InputError(_OTHER_FEATURES)


def _refuse_unknown_end(running: Pass, media: Sequence[Medium]) -> None:
    """Refuse shortened tiles and pooled frames at the end of a prompt: which patches make its last token is not known."""
    for medium in media:
        if medium.shape.canvases and bool(running.left.layout.ends[medium.row, medium.columns[-1]]):
            raise UnsupportedCombination(
                f"row {medium.row} ends with a {medium.shape.kind}, whose last token asks for the answer, but stages inside "
                "this encoder may remove it: put text after it, or choose in the language model (site=pre_llm or layer=k)"
            )


def _check_unknown(running: Pass, media: Sequence[Medium], empty: Tensor) -> None:
    """Refuse media that the encoder's stages shortened where nobody knows how: columns [B, S] of theirs are empty. Waits."""
    if any(bool(empty[medium.row, medium.columns].any()) for medium in media):
        raise InputError(
            "features of a picture were shortened by this plan in another conversation, which alone knows what they are made "
            "of: encode pictures inside the call or conversation that reads them, or under attachment.disabled()"
        )
    say_once(
        running.owner,
        "features of a picture were encoded before this call, without the plan: its stages inside the vision encoder did "
        "nothing to them; pass pixel values instead",
    )


def _count(
    media: Mapping[int, Medium], matched: Mapping[int, Sequence[EncodedRow]], gone: Tensor, check: bool
) -> dict[int, tuple[int, ...]]:
    """Tokens that are left of each piece of the media that passed the encoder. Waits where shapes do not say it, and to check.

    Raises:
        InputError: if `check` finds other numbers than shapes say.
    """
    by_shape = {key: _pieces_left(media[key].shape, rows) for key, rows in matched.items()}
    known = {key: counts for key, counts in by_shape.items() if counts is not None}
    if len(known) == len(matched) and not check:
        return known
    on_host = gone.cpu()
    seen: dict[int, tuple[int, ...]] = {}
    for key in matched:
        kept = ~on_host[media[key].row, media[key].columns]
        pieces = torch.split(kept, [h * w for _, h, w in media[key].shape.pieces])
        seen[key] = tuple(int(piece.sum()) for piece in pieces)
    if any(seen[key] != counts for key, counts in known.items()):
        raise InputError(_OTHER_FEATURES)
    return seen


def _pieces_left(shape: MediumShape, rows: Sequence[EncodedRow]) -> tuple[int, ...] | None:
    """Tokens that are left of each piece of a medium, as far as shapes say it."""
    if not shape.canvases:
        return tuple(len(row.units) for row in rows)
    counts, start = [], 0
    for canvas in shape.canvases:
        counts.append(canvas.left(len(rows[start].units)))
        start += canvas.rows
    return None if None in counts else tuple(count for count in counts if count is not None)


def _left(span: Span, left: Sequence[int] | None, gone: Tensor, sizes: Tensor) -> Span:
    """What is left of a span whose medium has so many tokens `left` in each piece; None where nothing is gone."""
    assert span.grid is not None
    count = span.count if left is None else sum(left[span.frame : span.frame + span.grid[0]])
    if count == span.count:
        return replace(span, sizes=sizes[span.row, span.columns])
    # The kept ones come first, in their order; how many there are is known.
    index = gone[span.row, span.columns].to(torch.uint8).argsort(stable=True)[:count]
    columns = span.columns[index]
    return replace(
        span,
        grid=None,
        owner=span.owner[index],
        columns=columns,
        coords=span.coords[index],
        sizes=sizes[span.row, columns],
        count=count,
    )


def _at_columns(running: Pass, hidden: Tensor, matched: dict[int, list[EncodedRow]], values: dict[int, list[Tensor]]) -> Tensor:
    """[B, S] fp32: at each visual token what the model makes of a number for each unit that is left, 1 everywhere else."""
    out = hidden.new_ones(hidden.shape[:2], dtype=torch.float32)
    for key, medium in enumerate(running.left.layout.media, start=running.left.first_medium):
        rows = matched.get(key, [])
        if any(len(row.units) < row.count for row in rows):
            columns = medium.columns.to(hidden.device, non_blocking=True)
            out[medium.row, columns] = _spread(medium.shape, rows, values[key]).to(hidden.device)
    return out


def _spread(shape: MediumShape, rows: Sequence[EncodedRow], values: Sequence[Tensor]) -> Tensor:
    """[n] a number for each grid token of a medium, from those of the units that are left in its rows of the encoder."""
    whole = zip(rows, values, strict=True)
    return spread(shape, [value.new_zeros(row.count).scatter(0, row.units, value) for row, value in whole])


def _choose(medium: Medium, rows: Sequence[EncodedRow], coverage: Tensor, gone: Tensor) -> None:
    """Mark in `gone` [B, S] the tokens of shrunk grids that their budget leaves no room for."""
    token, start = 0, 0
    for canvas in medium.shape.canvases:
        columns = medium.columns[token : token + canvas.tokens].to(gone.device, non_blocking=True)
        gone[medium.row, columns] = ~canvas.choose(coverage[medium.row, columns], len(rows[start].units))
        token, start = token + canvas.tokens, start + canvas.rows


def _note(running: Pass, key: int, medium: Medium, rows: Sequence[EncodedRow], gone: Tensor, left: int) -> None:
    """Note the encoder's stages in the trace; so many of the medium's tokens are `left`."""
    trace = running.conversation.trace
    if medium.shape.canvases:
        columns = medium.columns.to(gone.device, non_blocking=True)
        kept = gone[medium.row, columns].to(torch.uint8).argsort(stable=True)[:left]
        trace.add_encoded(EncoderRecord(key, tuple(tuple(row.stages) for row in rows), kept))
        return
    for row in rows:
        for text, selection, group, count in row.stages:
            trace.add(GroupRecord(text, torch.full((count,), key, device="cpu"), selection, group))
