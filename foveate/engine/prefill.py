"""Running token stages: build views, ask the method, apply its answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.budget import Budget
from foveate.core.plan import Stage
from foveate.core.selection import Selection, merge_values
from foveate.core.trace import GroupRecord
from foveate.core.view import AttentionRows, Change, Observation, Question, QuestionTokens, TextPivots, TokenView
from foveate.engine.asking import ask, placed
from foveate.engine.choosing import choose
from foveate.engine.forward import Pass
from foveate.engine.layout import FRAMES
from foveate.engine.matching import encoder_values
from foveate.engine.projection import take
from foveate.engine.question import question_states, question_tokens, text_pivots
from foveate.engine.spans import Span, widen
from foveate.ops.energy import energy_counts

_Buckets = dict[tuple[int, tuple[int, int, int] | None, int], list[Span]]


def _buckets(spans: Sequence[Span], stage: Stage) -> _Buckets:
    """Spans of equal length, equal grid and equal budget: they become one view. What follows the picture is 0 for now."""
    by_picture = stage.budget is not None and not stage.budget.is_fixed
    buckets = defaultdict(list)
    for span in spans:
        kept = 0 if by_picture else stage.kept_of(span.count, span.grid)
        buckets[(span.count, span.grid, kept)].append(span)
    return buckets


def _by_energy(running: Pass, budget: Budget, buckets: _Buckets, hidden: Tensor) -> _Buckets:
    """The buckets with the counts that the states of their spans ask for; they are read from the device, which waits once."""
    assert budget.energy is not None
    counts = [energy_counts(_states(running, spans, hidden)[0], budget.energy) for spans in buckets.values()]
    wanted = iter(torch.cat(counts).tolist())
    out = defaultdict(list)
    for (count, grid, _), spans in buckets.items():
        for span in spans:
            out[(count, grid, budget.within(next(wanted), count))].append(span)
    return out


def _states(running: Pass, spans: list[Span], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A copy [G, N, D] of the states of spans of equal length, then their batch rows [G, 1], columns and slots [G, N]."""
    columns, rows = torch.stack([span.columns for span in spans]), _rows(spans, hidden.device)
    alive = running.left.alive
    slots = columns if alive is None else alive.slot_of[rows, columns]
    return _gather(hidden, rows, slots), rows, columns, slots


def run_stage(running: Pass, stage: Stage, layer: int, hidden: Tensor, shortcut: bool, check: bool) -> Tensor:
    """Run a DROP stage in front of a decoder layer; returns the hidden states [B, n', D] of the survivors.

    Args:
        running: the pass, whose survivors are brought up to date.
        stage, layer: the stage and its decoder layer.
        hidden: [B, n, D] states entering the layer.
        shortcut: skip a stage that keeps everything.
        check: verify the values of the method's answer, which waits for accelerators.
    """
    left, text = running.left, str(stage)
    left.regroup(widen(left.spans, stage))
    buckets = _buckets(left.spans, stage)
    if stage.budget is not None and stage.budget.energy is not None:
        buckets = _by_energy(running, stage.budget, buckets, hidden)
    if shortcut and all(keep == count for count, _, keep in buckets):
        for (count, _, _), spans in buckets.items():
            everything = Selection(torch.arange(count, device=hidden.device).expand(len(spans), -1))
            for group, span in enumerate(spans):
                running.conversation.trace.add(GroupRecord(text, span.owner, everything, group))
        return hidden
    changed, survivors = hidden, []
    for (_, grid, keep), spans in buckets.items():
        features, rows, columns, slots = _states(running, spans, hidden)
        view = _view(running, stage, layer, spans, grid, hidden, features, rows, columns)
        for groups, selection in choose(stage, view, keep, check):
            own, whole = [spans[group] for group in groups], len(groups) == len(spans)
            row, column, slot = (rows, columns, slots) if whole else (rows[groups], columns[groups], slots[groups])
            if selection.is_merge:
                merged = merge_values(features, selection)
                changed = changed.clone() if changed is hidden else changed
                changed[row, slot.gather(1, selection.kept)] = take(merged, selection.kept, 1)
            left.keep_of(own, row, column, selection.kept)
            sizes = selection.kept_sizes(view.sizes if whole else view.sizes[groups])
            survivors += _survivors(running, text, own, selection, sizes)
    left.regroup(sorted(survivors, key=lambda span: (span.row, span.medium, span.frame)))
    return left.shorten(layer, changed)


def choose_hidden(running: Pass, stage: Stage, layer: int, rows: int, columns: int, check: bool) -> Tensor:
    """Run a MASK stage: [rows, columns] bool, True at the key columns that the layers after it must not see.

    `check` is that of `run_stage`.
    """
    left, text = running.left, str(stage)
    left.regroup(widen(left.spans, stage))
    device = left.spans[0].columns.device
    hidden = torch.zeros(rows, columns, dtype=torch.bool, device=device)
    for (count, grid, keep), spans in _buckets(left.spans, stage).items():
        own = torch.stack([span.columns for span in spans])
        row_index = _rows(spans, device)
        # Cached tokens have keys and values but no hidden states any more, so masked methods see none.
        features = torch.empty(len(spans), count, 0, device=device, dtype=torch.float32)
        view = _view(running, stage, layer, spans, grid, features, features, row_index, own)
        selection = ask(stage, view, keep, check)
        hidden[row_index, own] = True
        hidden[row_index, own.gather(1, selection.kept)] = False
        _survivors(running, text, spans, selection, selection.kept_sizes(view.sizes))
    left.hide(hidden)
    return hidden


def _gather(hidden: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """A copy [G, N, D] of the states of some tokens; in inference mode too one whose writes are counted."""
    if not hidden.is_inference():
        return hidden[rows, slots]
    with torch.inference_mode(False), torch.no_grad():
        return hidden[rows, slots]


def _rows(spans: list[Span], device: torch.device) -> Tensor:
    """[G, 1] batch row of each span."""
    return torch.tensor([span.row for span in spans], device="cpu")[:, None].to(device, non_blocking=True)


def _view(
    running: Pass,
    stage: Stage,
    layer: int,
    spans: list[Span],
    grid: tuple[int, int, int] | None,
    hidden: Tensor,
    features: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> TokenView:
    observed: dict[Observation, Tensor] = {}
    for observation in stage.method.needs():
        if isinstance(observation, Question):
            observed[observation] = question_states(running, spans, hidden)
            continue
        if isinstance(observation, QuestionTokens):
            observed[observation] = question_tokens(running, spans, hidden)
            continue
        if observation.encodes:
            observed[observation] = encoder_values(running, observation, hidden)[rows, columns]
            continue
        if isinstance(observation, Change):
            before = running.shared.entered[layer - 1].to(features.device)
            slots = columns if running.left.alive is None else running.left.alive.slot_of[rows, columns]
            observed[observation] = (features.detach().float() - before[rows, slots].float()).norm(dim=2)
            continue
        measured = running.shared.observed[(layer, observation.probed)].to(features.device)  # [B, H, S]
        if isinstance(observation, TextPivots):
            observed[observation] = text_pivots(running, spans, hidden, measured[:, 0], observation.count)
            continue
        of_row = measured[rows[:, 0]]
        own = of_row.gather(2, columns[:, None].expand(-1, of_row.shape[1], -1))
        observed[observation] = own if isinstance(observation, AttentionRows) else own.mean(dim=1)
    return TokenView(
        features=features,
        coords=torch.stack([span.coords for span in spans]),
        grid=grid,
        sizes=torch.stack([span.sizes for span in spans]),
        group_keys=tuple(span.origin.number * FRAMES + span.frame for span in spans),
        observed=observed,
        predictor=placed(running.modules.get(stage), features),
        asks=tuple(span.asks for span in spans) if any(span.asks for span in spans) else (),
    )


def _survivors(running: Pass, text: str, spans: list[Span], selection: Selection, sizes: Tensor) -> list[Span]:
    """Note the stage in the trace and return the spans of what stays, which stand for `sizes` [G, K] tokens."""
    out = []
    for group, span in enumerate(spans):
        running.conversation.trace.add(GroupRecord(text, span.owner, selection, group))
        kept = selection.kept[group]
        out.append(
            replace(
                span,
                grid=span.grid if len(kept) == span.count else None,
                owner=span.owner[kept],
                columns=span.columns[kept],
                coords=span.coords[kept],
                sizes=sizes[group],
                count=len(kept),
            )
        )
    return out
