"""States of the text beside visual tokens: what is asked, what of it matches them, and the tokens with the largest keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from foveate.core.layout import Layout, Role
from foveate.engine.forward import Pass
from foveate.engine.raters import rater_columns
from foveate.engine.spans import Span
from foveate.ops.greedy import ROUNDING

# Visual tokens that are compared with a question at once.
_TOKENS_AT_ONCE = 512


def question_states(running: Pass, spans: Sequence[Span], hidden: Tensor) -> Tensor:
    """The mean state [G, D], fp32, of the question that each span's sample asks.

    Args:
        running: the pass.
        spans: G groups of visual tokens.
        hidden: [B, n, D] states entering the first decoder layer.
    """
    # Each sample on its own, so that a row alone has the same sum as in company.
    means = {place: states.mean(0) for place, states in _states(running, spans, hidden).items()}
    return torch.stack([means[span.row, span.origin.sample] for span in spans])


def question_tokens(running: Pass, spans: Sequence[Span], hidden: Tensor) -> Tensor:
    """The states [G, M, D], fp32, of the tokens of the question that each span's sample asks, with zeros behind shorter ones.

    Arguments as of `question_states`.
    """
    states = _states(running, spans, hidden)
    return pad_sequence([states[span.row, span.origin.sample] for span in spans], batch_first=True)


def text_pivots(running: Pass, spans: Sequence[Span], hidden: Tensor, norms: Tensor, count: int) -> Tensor:
    """States [G, count, D], fp32, of the text tokens with the largest keys of each span's sample; zeros where there are none.

    Args:
        running, spans: as of `question_states`.
        hidden: [B, n, D] states entering a decoder layer.
        norms: [B, S] size of the keys of each column in the layer below.
    """
    left, known = running.left, dict[tuple[int, int], Tensor]()
    for span in spans:
        place = span.row, span.origin.sample
        if place not in known:
            text = running.shared.once(("text", place), left.layout, partial(_text_columns, left.layout, *place))
            columns = text.to(hidden.device, non_blocking=True)
            largest = norms[span.row, columns].argsort(descending=True, stable=True)[:count]
            columns = columns[largest]
            slots = columns if left.alive is None else left.alive.slot_of[span.row, columns]
            states = hidden[span.row, slots].detach().float()
            known[place] = pad(states, (0, 0, 0, count - len(states)))
    return torch.stack([known[span.row, span.origin.sample] for span in spans])


def matching_text(running: Pass, hidden: Tensor) -> Tensor:
    """Of each sample's question the tokens that match its visual tokens better than on average: [B, S] bool, else True.

    m_t is the mean over the visual tokens v of softmax_t(v . t), and m_t > mean(m) is asked (SparseVLM, arXiv 2410.04417,
    Sec. 3.2). Where no token does better all of them count.

    Args:
        running: the pass.
        hidden: [B, n, D] states entering the first decoder layer.
    """
    left = running.left
    asking = running.shared.once("question", left.layout, lambda: rater_columns(left.layout, "text"))
    visual: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for span in left.spans:
        visual[span.row, span.origin.sample].append(span.columns)
    counts = torch.ones_like(left.dead)

    def states(row: int, columns: Tensor) -> Tensor:
        slots = columns if left.alive is None else left.alive.slot_of[row, columns]
        return hidden[row, slots].detach().float()

    # Each sample on its own, so that a row alone has the same raters as in company.
    for (row, sample), parts in visual.items():
        text = torch.tensor(asking[row][sample], device="cpu").to(hidden.device, non_blocking=True)
        words, columns = states(row, text), torch.cat(parts)
        match = torch.zeros_like(words[:, 0])
        for some in torch.split(columns, _TOKENS_AT_ONCE):
            match += (states(row, some) @ words.T).softmax(1).sum(0)
        better = match > match.mean() * (1 + ROUNDING)
        counts[row, text] = better | ~better.any()
    return counts


def _text_columns(layout: Layout, row: int, sample: int) -> Tensor:
    """Columns [m] of the text of a sample's prompt, without its first token."""
    columns = layout.parts(row)[sample][1:]
    roles = layout.roles[row, columns]
    return columns[(roles == int(Role.SYSTEM)) | (roles == int(Role.INSTRUCT))]


def _states(running: Pass, spans: Sequence[Span], hidden: Tensor) -> dict[tuple[int, int], Tensor]:
    """States [m, D] of each question, by row and sample."""
    left = running.left
    asking = running.shared.once("question", left.layout, lambda: rater_columns(left.layout, "text"))
    known: dict[tuple[int, int], Tensor] = {}
    for span in spans:
        place = span.row, span.origin.sample
        if place not in known:
            columns = torch.tensor(asking[span.row][span.origin.sample], device="cpu").to(hidden.device, non_blocking=True)
            slots = columns if left.alive is None else left.alive.slot_of[span.row, columns]
            known[place] = hidden[span.row, slots].float()
    return known
