"""What is asked about visual tokens: the mean state of the question, as it enters the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    left = running.left
    asking = running.shared.once("question", left.layout, lambda: rater_columns(left.layout, "text"))
    known: dict[tuple[int, int], Tensor] = {}
    for span in spans:
        place = span.row, span.origin.sample
        if place not in known:
            # Each sample on its own, so that a row alone has the same sum as in company.
            columns = torch.tensor(asking[span.row][span.origin.sample], device="cpu").to(hidden.device, non_blocking=True)
            slots = columns if left.alive is None else left.alive.slot_of[span.row, columns]
            known[place] = hidden[span.row, slots].float().mean(0)
    return torch.stack([known[span.row, span.origin.sample] for span in spans])
