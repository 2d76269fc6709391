"""What is asked about visual tokens: the states of the question, as they enter the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foveate.engine.forward import Pass
from foveate.engine.raters import rater_columns
from foveate.engine.spans import Span


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
