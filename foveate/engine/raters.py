"""Whose attention counts: the columns that rate visual tokens."""

from __future__ import annotations

from torch import Tensor

from foveate.core.layout import Layout, Role


def rater_columns(layout: Layout, query: str, output_rates: bool = False) -> list[list[list[int]]]:
    """For each row and each sample in it the columns whose attention counts, ascending; at least the last real one.

    `query` is "last", "text" (the instruction after the sample's last medium), "matched" (some of that, which the probe
    finds out), "all" or "window:w". Generated tokens rate only if `output_rates`: assisted decoding puts guesses after the
    prompt already in the first pass.
    """
    return [
        [_raters(layout.roles[row], part, query, output_rates) for part in layout.parts(row) if len(part)]
        for row in range(layout.roles.shape[0])
    ]


def _raters(roles: Tensor, real: Tensor, query: str, output_rates: bool) -> list[int]:
    """The raters of one sample, whose real columns are given."""
    prompt = real[roles[real] != int(Role.OUTPUT)]
    real = real if output_rates or not len(prompt) else prompt
    chosen = real[-1:]
    if query == "all":
        chosen = real
    elif query.startswith("window:"):
        chosen = real[-int(query.partition(":")[2]) :]
    elif query in ("text", "matched"):
        visual = real[roles[real] == int(Role.VISUAL)]
        after = int(visual[-1]) if len(visual) else -1
        text = real[(real > after) & (roles[real] == int(Role.INSTRUCT))]
        chosen = text if len(text) else chosen
    columns: list[int] = chosen.tolist()
    return columns
