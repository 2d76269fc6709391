"""Stages on the instruction: the text after a row's last image or video, without the prompt's last token."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.layout import Layout, Role
from foveate.core.method import ScoreMethod
from foveate.core.plan import Stage
from foveate.core.view import TokenView
from foveate.engine.asking import placed
from foveate.engine.forward import Pass
from foveate.engine.projection import take


def instruction_columns(layout: Layout) -> Tensor:
    """[B, S] bool: instruction columns after each row's last medium, but for the last; none in a row without media."""
    found = layout.is_role(Role.INSTRUCT)
    order = torch.arange(layout.width, device="cpu").expand_as(found)
    last_visual = torch.where(layout.is_role(Role.VISUAL), order, -1).max(1, keepdim=True).values
    found = found & (order > last_visual) & (last_visual >= 0)
    last = torch.where(found, order, -1).max(1, keepdim=True).values
    return found & (order != last)


def run_instruct_stage(running: Pass, stage: Stage, layer: int, hidden: Tensor) -> Tensor:
    """Drop the instruction's tokens that a method keeps with less than the threshold; returns the states of the others.

    How many stay is read from the device, which waits once.
    """
    assert isinstance(stage.method, ScoreMethod) and stage.budget is not None and stage.budget.threshold is not None
    columns = instruction_columns(running.left.layout)
    most = int(columns.sum(1).max())
    if not most:
        return hidden
    # Shorter rows are filled up with columns that are nobody's business.
    index = torch.argsort(columns.to(torch.uint8), dim=1, stable=True, descending=True)[:, :most]
    inside, index = columns.gather(1, index).to(hidden.device), index.to(hidden.device)
    alive = running.alive_on(hidden.device)
    features = take(hidden, index if alive is None else alive.slot_of.gather(1, index), 1)
    rows = features.shape[0]
    view = TokenView(
        features=features,
        coords=torch.zeros(rows, most, 3, dtype=torch.long, device=hidden.device),
        grid=None,
        sizes=torch.ones(rows, most, device=hidden.device, dtype=torch.float32),
        group_keys=tuple(range(rows)),
        predictor=placed(running.modules.get(stage), features),
    )
    gone = inside & (stage.method.score(view) <= stage.budget.threshold)
    dropped = torch.zeros_like(running.left.dead).scatter(1, index, gone)
    running.left.remove(dropped)
    running.conversation.trace.add_dropped_text(running.past, dropped)
    return running.left.shorten(layer, hidden)
