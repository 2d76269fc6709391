"""What a trace says about the layers of a model, in the terms of the dense reference."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.layout import Role
from foveate.core.plan import Plan
from foveate.core.trace import Trace
from tests.spies import alive_columns


def alive_by_layer(trace: Trace, plan: Plan, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    """{layer: [B, S] bool}: the columns of the prompt that are alive behind each stage within the language model."""
    return dict(zip(_layers(plan), alive_columns(trace, inputs), strict=True))


def merged_by_layer(trace: Trace, plan: Plan, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    """{layer: [B, S, S]}: what the columns that survive a stage are made of, of those that arrived at it; merges alone."""
    rows, width = inputs["input_ids"].shape
    found = {}
    for number, layer in enumerate(_layers(plan)):
        whole = torch.eye(width).repeat(rows, 1, 1)
        for entry in trace.media:
            columns, kept = entry.medium.columns, entry.kept[number]
            arrived = entry.kept[number - 1] if number else torch.arange(entry.medium.shape.grid_tokens)
            now = entry.stages[number][1].to_dense()[:, arrived]
            if number:
                # A matrix says what a token is made of in originals. What arrived holds its own original with a share that
                # no other one has, so that this share tells how much of it went where.
                now = now / entry.stages[number - 1][1].to_dense().gather(1, arrived[:, None]).T
            whole[entry.medium.row, columns[kept]] = 0
            whole[entry.medium.row, columns[kept][:, None], columns[arrived][None]] = now
        if not torch.equal(whole, torch.eye(width).expand_as(whole)):
            found[layer] = whole
    return found


def _layers(plan: Plan) -> list[int]:
    return [stage.site.decoder_layer or 0 for stage in plan.stages if stage.role is Role.VISUAL]
