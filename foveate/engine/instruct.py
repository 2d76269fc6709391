"""Stages on the instruction: the text of the last turn behind a row's last image or video, without the last token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.layout import Layout, Role
from foveate.core.method import ScoreMethod
from foveate.core.plan import Plan, Stage
from foveate.core.view import TokenView
from foveate.engine.asking import placed
from foveate.engine.forward import Pass
from foveate.engine.projection import take
from foveate.engine.prompts import prompt_mask, row_count
from foveate.families import Family


class Instructions:
    """Finds what the stages on the instruction judge: the last turn's text, as the authors of Dynamic-LLaVA do.

    Of a prompt that is what follows the last marker of a user's turn, but never what stands in front of the last medium; where
    no marker is known or found, all behind that medium. Of a turn on a cache it is what is new. Rows whose conversation has no
    medium stay whole; a call by hand on a cache does not say whether it has one, and is judged. The last column always stays.

    Args:
        plan: whose stages say how a turn begins.
        family, config: which ids are media.

    Attributes:
        turns: by stage, the token ids with which a user's turn begins; () where nobody said.
    """

    def __init__(self, plan: Plan, family: Family, config: Any) -> None:
        methods = [(stage, stage.method) for stage in plan.stages if stage.role is Role.INSTRUCT]
        self.turns = {stage: method.turn_ids() for stage, method in methods if isinstance(method, ScoreMethod)}
        self._media = list(family.placeholder_ids(config).values())

    def columns(self, running: Pass, call: Mapping[str, Any], found: Layout) -> dict[Stage, Tensor]:
        """By stage the columns [B, S] bool, on the CPU, that it judges in a pass whose layout is `found`; {} if none does."""
        if not self.turns:
            return {}
        inputs = running.conversation.inputs
        ids = (inputs or call).get("input_ids")
        ids = ids.cpu() if isinstance(ids, Tensor) else None
        judge = self._of_prompt if inputs else self._of_call
        judged = {stage: judge(running, call, found, ids, turn) for stage, turn in self.turns.items()}
        return {stage: columns for stage, columns in judged.items() if bool(columns.any())}

    def _of_call(
        self, running: Pass, call: Mapping[str, Any], found: Layout, ids: Tensor | None, turn: tuple[int, ...]
    ) -> Tensor:
        """A call by hand is a turn of its own."""
        visual = found.is_role(Role.VISUAL)
        concerned = visual.any(1) | (running.past > 0)
        return _last_text(found.is_role(Role.INSTRUCT), visual, concerned, _last_turn(ids, turn, visual))

    def _of_prompt(
        self, running: Pass, call: Mapping[str, Any], found: Layout, ids: Tensor | None, turn: tuple[int, ...]
    ) -> Tensor:
        """A pass's share of what is judged of the prompt of generate(), which may be read in chunks."""
        conversation = running.conversation
        begun, layout = max(conversation.begun - conversation.shift, 0), conversation.layout
        if layout is None:
            real = prompt_mask(conversation, call)
            text, visual = real, torch.zeros_like(real)
        else:
            text, visual = layout.is_role(Role.INSTRUCT), layout.is_role(Role.VISUAL)
        concerned = visual.any(1)
        if begun:
            earlier = None if ids is None else torch.isin(ids[:, :begun], torch.tensor(self._media, device="cpu")).any(1)
            concerned = concerned | (True if earlier is None else earlier)
        start = _last_turn(ids, turn, visual).clamp(min=begun)
        judged = _last_text(text, visual, concerned, start).repeat_interleave(row_count(call) // len(text), dim=0)
        judged = nn.functional.pad(judged, (conversation.shift, 0))[:, running.past : running.past + running.queries]
        return nn.functional.pad(judged, (0, running.queries - judged.shape[1]))


def _last_text(text: Tensor, visual: Tensor, concerned: Tensor, start: Tensor) -> Tensor:
    """[B, S] bool: text columns from `start` [B] on and behind the last visual one, but for the last; none in other rows.

    Args:
        text, visual: [B, S] bool.
        concerned: [B] bool, the rows that are judged.
    """
    order = torch.arange(text.shape[1], device="cpu").expand_as(text)
    behind = torch.where(visual, order + 1, 0).amax(1).maximum(start)
    found = text & (order >= behind[:, None]) & concerned[:, None]
    last = torch.where(found, order, -1).amax(1, keepdim=True)
    return found & (order != last)


def _last_turn(ids: Tensor | None, turn: tuple[int, ...], like: Tensor) -> Tensor:
    """[B] long: the column of `ids` [B, S] at which the last marker begins; 0 where there is none."""
    if ids is None or not turn or ids.shape[1] < len(turn):
        return torch.zeros(len(like), dtype=torch.long, device="cpu")
    found = (ids.unfold(1, len(turn), 1) == torch.tensor(turn, device="cpu")).all(-1)
    return torch.where(found, torch.arange(found.shape[1], device="cpu"), 0).amax(1)


def run_instruct_stage(running: Pass, stage: Stage, layer: int, hidden: Tensor) -> Tensor:
    """Drop the instruction's tokens that a method keeps with less than the threshold; returns the states of the others.

    How many stay is read from the device, which waits once.
    """
    assert isinstance(stage.method, ScoreMethod) and stage.budget is not None and stage.budget.threshold is not None
    columns = running.instructions[stage]
    most = int(columns.sum(1).max())
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
