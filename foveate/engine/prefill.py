"""Running token stages: build views, ask the method, apply its answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor, nn

from foveate.core.layout import Layout, Medium
from foveate.core.method import ScoreMethod, TokenMethod, top_indices
from foveate.core.plan import Scope, Stage
from foveate.core.selection import Selection, merge_values
from foveate.core.trace import GroupRecord
from foveate.core.view import Importance, Observation, TokenView
from foveate.engine.forward import Pass, Span
from foveate.engine.layout import FRAMES
from foveate.engine.projection import Alive, take
from foveate.errors import MethodError


def begin(running: Pass, layout: Layout, device: torch.device, by_piece: bool) -> None:
    """Bring the media of a pass to the device; uploads are not waited for.

    `by_piece` starts with one span per frame or crop, for plans whose first stage ranks within those.
    """
    running.layout = layout
    running.real = layout.real.to(device, non_blocking=True)
    running.dead = torch.zeros_like(running.real)
    running.lengths = layout.real.sum(1).tolist()
    first = running.first_medium = running.conversation.trace.add_media(layout.media)
    running.spans = [
        span
        for key, medium in enumerate(layout.media, start=first)
        for span in _spans(medium, key, device, by_piece, bool(layout.ends[medium.row, medium.columns[-1]]))
    ]


def _spans(medium: Medium, key: int, device: torch.device, by_piece: bool, asks: bool) -> list[Span]:
    shape = medium.shape
    columns = medium.columns.to(device, non_blocking=True)
    spans, start, frame = [], 0, 0
    for t, h, w in shape.pieces if by_piece else shape.grids:
        size = t * h * w
        token = torch.arange(size, device=device)
        spans.append(
            Span(
                row=medium.row,
                medium=medium.index,
                kind=shape.kind,
                frame=frame,
                frames=len(shape.pieces),
                grid=(t, h, w),
                owner=torch.full((size,), key, device=device),
                columns=columns[start : start + size],
                coords=torch.stack([frame + token // (h * w), token // w % h, token % w], dim=-1),
                sizes=torch.ones(size, device=device, dtype=torch.float32),
                count=size,
                asks=asks and start + size == len(columns),
                sample=medium.sample,
                number=medium.index - medium.earlier,
            )
        )
        start, frame = start + size, frame + t
    return spans


def _widen(spans: list[Span], stage: Stage) -> list[Span]:
    """Join spans until each is one crop, frame, medium or sample. Scopes only widen, so nothing is ever split.

    Parts of unequal grids have no common grid: a method that needs one gets them one by one.
    """
    scope = stage.scope
    together: dict[tuple[int, int, int, int], list[Span]] = defaultdict(list)
    for span in spans:
        alone = scope is Scope.CROP or (scope is Scope.FRAME and span.kind == "video")
        medium = 0 if scope is Scope.SAMPLE else span.medium
        together[(span.row, span.sample, medium, span.frame if alone else 0)].append(span)
    widened = []
    for members in together.values():
        joined = Span.join(members)
        widened += members if stage.method.needs_grid and joined.grid is None else [joined]
    return widened


def _buckets(running: Pass, stage: Stage) -> dict[tuple[int, tuple[int, int, int] | None, int], list[Span]]:
    """Spans of equal length, equal grid and equal budget: they become one view. A threshold's budget is 0 for now."""
    by_threshold = stage.budget is not None and not stage.budget.is_fixed
    buckets = defaultdict(list)
    for span in running.spans:
        kept = 0 if by_threshold else stage.kept_of(span.count, span.grid)
        buckets[(span.count, span.grid, kept)].append(span)
    return buckets


def _choose(stage: Stage, view: TokenView, keep: int, check: bool) -> list[tuple[list[int], Selection]]:
    """The answers of a stage, each for some groups of a view. Under a threshold groups of equal counts share one.

    Counts under a threshold are read from the device, which waits once. At least one token stays.
    """
    if keep:
        return [(list(range(view.group_count)), ask(stage, view, keep, check))]
    assert stage.budget is not None and stage.budget.threshold is not None and isinstance(stage.method, ScoreMethod)
    score = with_asking(stage.method.score(view), view)
    members: dict[int, list[int]] = defaultdict(list)
    for group, count in enumerate((score > stage.budget.threshold).sum(1).clamp(min=1).tolist()):
        members[count].append(group)
    return [(groups, Selection(top_indices(score[groups], count))) for count, groups in members.items()]


def run_stage(running: Pass, stage: Stage, layer: int, text: str, hidden: Tensor, shortcut: bool, check: bool) -> Tensor:
    """Run a DROP stage in front of a decoder layer; returns the hidden states [B, n', D] of the survivors.

    Args:
        running: the pass; its spans, lengths and `alive` are brought up to date.
        stage, layer, text: the stage, its decoder layer and its canonical text for the trace.
        hidden: [B, n, D] states entering the layer.
        shortcut: skip a stage that keeps everything.
        check: verify the values of the method's answer, which waits for accelerators.
    """
    assert running.dead is not None
    running.spans = _widen(running.spans, stage)
    buckets = _buckets(running, stage)
    if shortcut and all(keep == count for count, _, keep in buckets):
        for (count, _, _), spans in buckets.items():
            everything = Selection(torch.arange(count, device=hidden.device).expand(len(spans), -1))
            for group, span in enumerate(spans):
                running.conversation.trace.add(GroupRecord(text, span.owner, everything, group))
        return hidden
    changed, survivors = hidden, []
    for (count, grid, keep), spans in buckets.items():
        columns = torch.stack([span.columns for span in spans])  # [G, N]
        rows = _rows(spans, hidden.device)
        slots = columns if running.alive is None else running.alive.slot_of[rows, columns]
        features = _gather(hidden, rows, slots)
        view = _view(running, stage, layer, spans, grid, features, rows, columns)
        for groups, selection in _choose(stage, view, keep, check):
            own, whole = [spans[group] for group in groups], len(groups) == len(spans)
            row, column, slot = (rows, columns, slots) if whole else (rows[groups], columns[groups], slots[groups])
            if selection.is_merge:
                merged = merge_values(features, selection)
                changed = changed.clone() if changed is hidden else changed
                changed[row, slot.gather(1, selection.kept)] = take(merged, selection.kept, 1)
            # Every token of these spans is marked, then the kept ones are unmarked: no boolean indexing, so no sync.
            running.dead[row, column] = True
            running.dead[row, column.gather(1, selection.kept)] = False
            sizes = selection.kept_sizes(view.sizes if whole else view.sizes[groups])
            survivors += _survivors(running, text, own, selection, sizes)
            for span in own:
                running.lengths[span.row] -= count - selection.kept.shape[1]
    running.spans = sorted(survivors, key=lambda span: (span.row, span.medium, span.frame))
    return shorten(running, layer, changed)


def choose_hidden(running: Pass, stage: Stage, layer: int, text: str, rows: int, columns: int, check: bool) -> Tensor:
    """Run a MASK stage: [rows, columns] bool, True at the key columns that the layers behind it must not see.

    `check` is that of `run_stage`.
    """
    running.spans = _widen(running.spans, stage)
    device = running.spans[0].columns.device
    hidden = torch.zeros(rows, columns, dtype=torch.bool, device=device)
    for (count, grid, keep), spans in _buckets(running, stage).items():
        own = torch.stack([span.columns for span in spans])
        row_index = _rows(spans, device)
        # Cached tokens have keys and values but no hidden states any more, so masked methods see none.
        features = torch.empty(len(spans), count, 0, device=device, dtype=torch.float32)
        view = _view(running, stage, layer, spans, grid, features, row_index, own)
        selection = ask(stage, view, keep, check)
        hidden[row_index, own] = True
        hidden[row_index, own.gather(1, selection.kept)] = False
        _survivors(running, text, spans, selection, selection.kept_sizes(view.sizes))
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
    features: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> TokenView:
    observed: dict[Observation, Tensor] = {}
    for observation in stage.method.needs():
        of_rows = observation.rows if isinstance(observation, Importance) else observation
        measured = running.observed[(layer, of_rows)].to(features.device)  # [B, H, S]
        of_row = measured[rows[:, 0]]
        own = of_row.gather(2, columns[:, None].expand(-1, of_row.shape[1], -1))
        observed[observation] = own if of_rows is observation else own.mean(dim=1)
    return TokenView(
        features=features,
        coords=torch.stack([span.coords for span in spans]),
        grid=grid,
        sizes=torch.stack([span.sizes for span in spans]),
        group_keys=tuple(span.number * FRAMES + span.frame for span in spans),
        observed=observed,
        predictor=placed(running.modules.get(stage), features),
        asks=tuple(span.asks for span in spans) if any(span.asks for span in spans) else (),
    )


def placed(module: nn.Module | None, features: Tensor) -> nn.Module | None:
    """A learned method's module where its features are, in their number format."""
    if module is not None:
        known = next(module.parameters())
        if known.device != features.device or known.dtype != features.dtype:
            module.to(features.device, features.dtype)
    return module


def ask(stage: Stage, view: TokenView, keep: int, check: bool) -> Selection:
    """The answer of a stage's method, held to its contract; `check` reads values, which waits for accelerators."""
    method = stage.method
    assert isinstance(method, TokenMethod)
    features = view.features
    before = None if features.is_inference() else features._version
    selection = _select(method, view, keep)
    try:
        selection.check_shapes(view.group_count, view.token_count, keep)
        if before is not None and features._version != before:
            raise MethodError("it wrote into the view's features, which are read only")
        if check:
            selection.check_values(view.token_count)
    except MethodError as error:
        raise MethodError(f"method '{method.name}' broke its contract: {error}") from None
    return selection


def _select(method: TokenMethod, view: TokenView, keep: int) -> Selection:
    """The method's answer, with the last token of the groups that ask: one of the `keep` in any case."""
    if not view.asks:
        return method.select(view, keep)
    if isinstance(method, ScoreMethod):
        return Selection(method.choose(with_asking(method.score(view), view), view, keep))
    return method.select(view, keep).with_last(_asking(view), view.token_count)


def _asking(view: TokenView) -> Tensor:
    """[G] bool: whether the last token of a group asks."""
    return torch.tensor(view.asks, device="cpu").to(view.features.device, non_blocking=True)


def with_asking(score: Tensor, view: TokenView) -> Tensor:
    """Scores [G, N], the highest of all for the last token of the groups that ask."""
    if not view.asks:
        return score
    last = torch.where(_asking(view), torch.inf, score[:, -1])
    return torch.cat([score[:, :-1], last[:, None].to(score.dtype)], dim=1)


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


def shorten(running: Pass, layer: int, hidden: Tensor) -> Tensor:
    """Gather the surviving tokens of every row; shorter rows have holes on the side of the padding."""
    assert running.real is not None and running.dead is not None and running.layout is not None
    before = running.alive
    alive = Alive.of(running.real & ~running.dead, running.lengths, running.layout.pads_right)
    slots = alive.index if before is None else before.slot_of.gather(1, alive.index)
    running.alive = alive
    running.shortened.append((layer, alive))
    return take(hidden, slots, 1)
