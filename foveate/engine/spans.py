"""Groups of visual tokens that are ranked together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.layout import Medium
from foveate.core.plan import Scope, Stage


@dataclass(frozen=True)
class Origin:
    """Where the tokens of a span come from; of the first medium, frame or crop if there are several.

    Attributes:
        row: batch row.
        sample: number of the sample among those packed into the row.
        medium: number of the medium within its row.
        number: the same within its sample.
        kind: "image" or "video".
        frame: number of the frame or crop within its medium.
        frames: frames and crops of the whole medium.
    """

    row: int
    sample: int
    medium: int
    number: int
    kind: str
    frame: int
    frames: int


@dataclass
class Span:
    """Visual tokens that are ranked together: one crop or frame, one medium, or all media of a row. Tensors are on the device.

    Attributes:
        origin: where they come from.
        grid: (t, h, w) while the tokens are a whole grid in raster order, else None.
        owner: [n] long, key of each token's medium in the trace.
        columns: [n] long, column of each token in this pass.
        coords: [n, 3] long, (t, y, x) on the medium's grids; t counts on from grid to grid.
        sizes: [n] fp32, how many originals each token stands for.
        count: n, known on the host.
        asks: its last token is the last column of its sample, or of that one's prompt: it stays whatever a method says.
    """

    origin: Origin
    grid: tuple[int, int, int] | None
    owner: Tensor
    columns: Tensor
    coords: Tensor
    sizes: Tensor
    count: int
    asks: bool = False

    @property
    def row(self) -> int:
        """The batch row."""
        return self.origin.row

    @property
    def medium(self) -> int:
        """Number of the medium within its row."""
        return self.origin.medium

    @property
    def frame(self) -> int:
        """Number of the frame or crop within its medium."""
        return self.origin.frame

    @staticmethod
    def join(spans: list[Span]) -> Span:
        """Several spans as one; whole frames or crops of one size make a whole grid."""
        if len(spans) == 1:
            return spans[0]
        first = spans[0]
        grids = [span.grid for span in spans if span.grid is not None and span.medium == first.medium]
        whole = len(grids) == len(spans) and len({grid[1:] for grid in grids}) == 1
        grid = (sum(t for t, _, _ in grids), *grids[0][1:]) if whole else None
        return Span(
            first.origin,
            grid,
            torch.cat([span.owner for span in spans]),
            torch.cat([span.columns for span in spans]),
            Span._coords(spans),
            torch.cat([span.sizes for span in spans]),
            sum(span.count for span in spans),
            spans[-1].asks,
        )

    @staticmethod
    def _coords(spans: list[Span]) -> Tensor:
        """Coordinates of several spans; media follow each other in time, so that a spatial window never mixes two."""
        parts, start, medium = [], 0, spans[0].medium
        for span, before in zip(spans, [spans[0], *spans], strict=False):
            if span.medium != medium:
                start, medium = start + before.origin.frames, span.medium
            parts.append(torch.cat([span.coords[:, :1] + start, span.coords[:, 1:]], dim=1))
        return torch.cat(parts)


def spans_of(medium: Medium, key: int, device: torch.device, by_piece: bool, asks: bool) -> list[Span]:
    """The tokens of one medium, whose key in the trace is `key`; `by_piece` gives one span per frame or crop."""
    shape = medium.shape
    columns = medium.columns.to(device, non_blocking=True)
    spans, start, frame = [], 0, 0
    number = medium.index - medium.earlier
    for t, h, w in shape.pieces if by_piece else shape.grids:
        size = t * h * w
        token = torch.arange(size, device=device)
        spans.append(
            Span(
                origin=Origin(medium.row, medium.sample, medium.index, number, shape.kind, frame, len(shape.pieces)),
                grid=(t, h, w),
                owner=torch.full((size,), key, device=device),
                columns=columns[start : start + size],
                coords=torch.stack([frame + token // (h * w), token // w % h, token % w], dim=-1),
                sizes=torch.ones(size, device=device, dtype=torch.float32),
                count=size,
                asks=asks and start + size == len(columns),
            )
        )
        start, frame = start + size, frame + t
    return spans


def widen(spans: list[Span], stage: Stage) -> list[Span]:
    """Join spans until each is one crop, frame, medium or sample. Scopes only widen, so nothing is ever split.

    A method that needs whole grids gets the parts of a medium one by one: crops are no frames that follow each other.
    """
    scope = stage.scope
    together: dict[tuple[int, int, int, int], list[Span]] = defaultdict(list)
    for span in spans:
        alone = scope is Scope.CROP or (scope is Scope.FRAME and span.origin.kind == "video")
        medium = 0 if scope is Scope.SAMPLE else span.medium
        together[(span.row, span.origin.sample, medium, span.frame if alone else 0)].append(span)
    widened = []
    for members in together.values():
        widened += members if stage.method.needs_grid else [Span.join(members)]
    return widened
