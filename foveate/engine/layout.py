"""Finding the media in a call: placeholder columns, padding and grids -> Layout. One device sync."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.layout import Layout
from foveate.core.shape import MediumShape
from foveate.errors import InputError
from foveate.families import Family

_TEXT, PADDING, _ANSWER = 0, -1, -2
# Arguments that carry pictures which were encoded before the call.
_ENCODED = ("mm_encoder_outputs",)


def column_codes(
    family: Family,
    config: Any,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    mask: Tensor | None,
    embed: nn.Module,
    labels: Tensor | None = None,
) -> Tensor:
    """[B, S] int8: -2 answer, -1 padding, 0 text, 1.. the kinds of media in the family's order.

    Callers that pass embeddings instead of ids are served by looking for the placeholder's own embedding. The answer of a
    training row begins with its first label that is not -100.
    """
    ids = family.placeholder_ids(config)
    source = input_ids if input_ids is not None else inputs_embeds
    if source is None:
        raise InputError("a model call needs input_ids or inputs_embeds")
    codes = torch.zeros(source.shape[:2], dtype=torch.int8, device=source.device)
    for number, token in enumerate(ids.values(), start=1):
        if input_ids is not None:
            found = input_ids == token
        else:
            assert inputs_embeds is not None
            placeholder = embed(torch.full((), token, device=inputs_embeds.device))
            found = (inputs_embeds == placeholder).all(-1)
        codes = codes.masked_fill(found, number)
    if labels is not None and labels.shape == codes.shape:
        answered = (labels.to(codes.device) != -100).cumsum(1) > 0
        codes = codes.masked_fill(answered & (codes == _TEXT), _ANSWER)
    if mask is not None and mask.ndim == 2:
        if mask.shape[0] != codes.shape[0] or mask.shape[1] < codes.shape[1]:
            raise InputError(
                f"attention_mask of shape {tuple(mask.shape)} does not fit {codes.shape[0]} rows of {codes.shape[1]} columns"
            )
        codes = codes.masked_fill(mask[:, -codes.shape[1] :].to(codes.device) == 0, PADDING)
    return codes


def two_dimensional_mask(call: Mapping[str, Any], inputs: Mapping[str, Any], in_generate: bool) -> Tensor | None:
    """The padding mask [B, S] of `inputs`, from the call or from generate's own arguments; None if there is none.

    Generate repeats the prompt's rows for beams; one row per sample is returned.
    """
    # Inside generate its own mask spans the prompt; a chunk's mask may end with the chunk.
    sources = (inputs, call) if in_generate else (call,)
    masks = [source.get("attention_mask") for source in sources]
    mask = next((mask for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2), None)
    if mask is None or not in_generate:
        return mask
    prompt = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return mask[:: max(1, mask.shape[0] // prompt.shape[0])][:, : prompt.shape[1]]


def fetch(codes: Tensor, inputs: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Tensor, Mapping[str, Any]]:
    """Codes and the small integer inputs `names` on the CPU. One transfer for all of them: each one waits for the device."""
    far = {name: inputs[name] for name in names if isinstance(inputs.get(name), Tensor)}
    far = {name: value for name, value in far.items() if value.device == codes.device}
    parts = [codes, *far.values()]
    packed = torch.cat([part.flatten().long() for part in parts]).cpu()
    near = [
        piece.view(part.shape) for piece, part in zip(torch.split(packed, [part.numel() for part in parts]), parts, strict=True)
    ]
    return near[0].to(torch.int8), {**inputs, **dict(zip(far, near[1:], strict=True))}


def build_layout(
    family: Family,
    config: Any,
    inputs: Mapping[str, Any],
    codes: Tensor,
    prompt_length: int | None,
    cached: int = 0,
    samples: Tensor | None = None,
) -> Layout | None:
    """The layout of a call, or None for a text-only one.

    The first `cached` columns are in the cache already. Usually the media of a next turn are passed without those of the
    turns before it, so columns in the cache count as text; if the media fit the whole prompt only, they count as media.

    Raises:
        InputError: if placeholders and media do not fit together.
    """
    if cached:
        behind = codes.clone()
        behind[:, :cached] = behind[:, :cached].clamp(max=_TEXT)
        ids = inputs.get("input_ids")
        later = inputs if ids is None else {**inputs, "input_ids": ids[:, cached:]}
        try:
            return build_layout(family, config, later, behind, prompt_length)
        except InputError:
            pass
    kinds = list(family.placeholder_ids(config))
    columns = {kind: int((codes == number).sum()) for number, kind in enumerate(kinds, start=1)}
    has_pixels = any(name.startswith("pixel_values") and value is not None for name, value in inputs.items())
    if not any(columns.values()) and not has_pixels:
        return None
    if not has_pixels and inputs.get("inputs_embeds") is None and not any(inputs.get(name) for name in _ENCODED):
        kind, count = max(columns.items(), key=lambda item: item[1])
        raise InputError(f"the prompt has {count} {kind} placeholder tokens, but no {kind} is given: pass its pixel values too")
    shapes = family.media(config, inputs, columns)
    rows = _media_by_row(codes, kinds, shapes)
    is_visual = codes > _TEXT
    return Layout.build(is_visual, codes != PADDING, rows, prompt_length, codes == _ANSWER, samples)


def _media_by_row(codes: Tensor, kinds: list[str], shapes: Mapping[str, list[MediumShape]]) -> list[list[MediumShape]]:
    """Hand out the media, in order, to the rows whose placeholder columns they fill."""
    queues = {kind: list(shapes.get(kind, [])) for kind in kinds}
    rows = []
    for row in range(codes.shape[0]):
        visual = codes[row][codes[row] > _TEXT].tolist()
        media, at = [], 0
        while at < len(visual):
            kind = kinds[visual[at] - 1]
            if not queues[kind]:
                raise InputError(
                    f"row {row} has more {kind} placeholder tokens than its {kind}s fill: "
                    f"{len(visual) - at} are left over; pass one {kind} for each placeholder in the prompt"
                )
            shape = queues[kind].pop(0)
            media.append(shape)
            at += shape.tokens
        rows.append(media)
    left = {kind: len(queue) for kind, queue in queues.items() if queue}
    if left:
        kind, count = next(iter(left.items()))
        raise InputError(
            f"{count} more {kind}(s) than placeholders: the prompt needs one {kind} placeholder for each {kind}; "
            "build the prompt with the processor's chat template"
        )
    return rows


def refuse_hidden(family: Family, config: Any, ids: Tensor | None, mask: Tensor | None) -> None:
    """Raise InputError where an attention mask hides placeholders: then media and columns cannot fit together."""
    if ids is None or mask is None or mask.ndim != 2 or mask.shape[1] < ids.shape[1]:
        return
    tokens = torch.tensor(list(family.placeholder_ids(config).values()), device=ids.device)
    hidden = int((torch.isin(ids, tokens) & (mask[:, -ids.shape[1] :].to(ids.device) == 0)).sum())
    if hidden:
        raise InputError(
            f"attention_mask hides {hidden} placeholder tokens of pictures: leave out the picture and its placeholders, or "
            "let the mask show them"
        )


# What says that a row holds several samples.
PACKING = ("position_ids", "cu_seq_lens_q")


def packed_samples(inputs: Mapping[str, Any], codes: Tensor) -> Tensor | None:
    """[B, S] long, number of the sample that a column belongs to, where rows hold several; None where each row is one.

    A sample begins where a real column's position is no longer larger than the one before it. Where positions have three parts
    (M-RoPE), a picture's columns share some of them: there it begins where all parts start anew.

    Args:
        inputs: `cu_seq_lens_q` [n + 1] of a single row, or `position_ids` [B or 1, S], [3, B, S], or [4, B, S] with the
            text's first; on the CPU.
        codes: [B, S] as of `column_codes`, on the CPU.
    """
    batch, width = codes.shape
    starts = torch.zeros(batch, width, dtype=torch.bool, device="cpu")
    cuts, positions = inputs.get("cu_seq_lens_q"), inputs.get("position_ids")
    if isinstance(cuts, Tensor) and batch == 1:
        starts[0, cuts[(cuts > 0) & (cuts < width)].long()] = True
    elif isinstance(positions, Tensor) and positions.shape[-1] == width and width > 1:
        parts = positions if positions.ndim == 3 else positions[None]
        parts = parts[:1] if len(parts) == 4 else parts
        now, before = parts[..., 1:], parts[..., :-1]
        anew = (now <= before).all(0) if len(parts) == 1 else (now < before).all(0) | (now == 0).all(0)
        real = codes != PADDING
        starts[:, 1:] = anew & real[:, 1:] & real[:, :-1]
    return starts.cumsum(1) if bool(starts.any()) else None


# More frames than any video has: the keys of two groups of one row never meet.
FRAMES = 1 << 20


def encoder_rows(layout: Layout | None, start: int, rows: int) -> list[tuple[int, bool]]:
    """For each of `rows` images, crops or frames that the vision encoder is given, following `start` earlier ones: a number,
    and whether its last token is a column that asks (`Layout.ends`).

    The number follows from the place within the own sample, so that seeded methods draw alike alone and in company. Where the
    prompt is not known yet, pictures are counted.
    """
    if layout is not None:
        each = sum(medium.shape.encoder_rows for medium in layout.media)
        copies = (start + rows) // each if each and (start + rows) % each == 0 else 1
        layout = layout.repeated(copies)
        found = []
        # Transformers encodes all images of a call, then all videos.
        for medium in sorted(layout.media, key=lambda medium: medium.shape.kind == "video"):
            last = medium.shape.encoder_rows - 1
            asks = bool(layout.ends[medium.row, medium.columns[-1]]) and not medium.shape.canvases
            number = (medium.index - medium.earlier) * FRAMES
            found += [(number + piece, asks and piece == last) for piece in range(last + 1)]
        if len(found) >= start + rows:
            return found[start : start + rows]
    return [(number, False) for number in range(start, start + rows)]
