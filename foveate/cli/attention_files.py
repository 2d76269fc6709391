"""What `foveate view attention` writes: pages, pictures, numbers and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from torch import Tensor

from foveate.core.attention import KINDS, AttentionStudy, Raters
from foveate.core.layout import Medium
from foveate.viz.attention_page import Heading, attention_page
from foveate.viz.attention_plot import KIND_NAMES, RATER_NAMES, allocation_plot, heat_map, layer_name
from foveate.viz.parts import Part


def attention_files(
    study: AttentionStudy, drawn: Sequence[tuple[Medium, Sequence[Part]]], heading: Heading
) -> dict[str, bytes]:
    """The page, the plot and the heat maps, by file name."""
    files = {
        "attention.html": attention_page(study, drawn, heading).encode("utf-8"),
        "allocation.png": allocation_plot(study, heading.question),
    }
    for number, (medium, parts) in enumerate(drawn, start=1):
        for place, part in enumerate(parts, start=1):
            name = f"{number}" if len(parts) == 1 else f"{number}-part-{place}"
            for kind in Raters:
                if kind is Raters.INSTRUCTION or study.has_answer(0):
                    subtitle = f"{heading.question} → {heading.answer}" if kind is Raters.OUTPUT else heading.question
                    files[f"heat-{name}-{kind.value}.png"] = heat_map(study, kind, medium, part, subtitle)
    return files


def numbers(
    study: AttentionStudy, drawn: Sequence[tuple[Medium, Sequence[Part]]], question: str, answer: str
) -> dict[str, Any]:
    """Everything that was measured, for programs. Shares are of 1; attention of grid tokens in raster order."""
    raters: dict[str, Any] = {}
    for kind in Raters:
        if kind is Raters.OUTPUT and not study.has_answer(0):
            continue
        raters[kind.value] = {
            "shares": _rows(study.shares(kind)[:, 0]),
            "per_token": _rows(study.efficiency(kind)[:, 0]),
            "pictures": [_rows(study.received(kind, medium)) for medium, _ in drawn],
        }
    return {
        "question": question,
        "answer": answer,
        "layers": list(study.layers),
        "windows": list(study.windows),
        "kinds": [KIND_NAMES[kind] for kind in KINDS],
        "token_counts": study.token_counts()[0].tolist(),
        "pictures": [
            {"kind": medium.shape.kind, "grids": [list(grid) for grid in medium.shape.grids], "parts": [p.title for p in parts]}
            for medium, parts in drawn
        ],
        "raters": raters,
    }


def _rows(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else float(f"{value:.7g}") for value in row] for row in values.tolist()]


def table(study: AttentionStudy, raters: Raters) -> Table:
    """Shares of each layer, of all tokens of a kind and of one of them."""
    counts = study.token_counts()[0].tolist()
    seen = [number for number, count in enumerate(counts) if count and (raters is Raters.OUTPUT or number < len(KINDS) - 1)]
    table = Table(title=f"attention of {RATER_NAMES[raters]}: share, and share per token", title_justify="left")
    table.add_column("layer")
    for number in seen:
        count = f"{counts[number]} token" + ("s" if counts[number] != 1 else "")
        table.add_column(f"{KIND_NAMES[KINDS[number]]}\n{count}", justify="right")
    for number in seen:
        table.add_column(f"one {KIND_NAMES[KINDS[number]]}\ntoken", justify="right", style="cyan")
    shares, efficiency = study.shares(raters)[:, 0], study.efficiency(raters)[:, 0]
    for number, _ in enumerate(study.layers):
        cells = [f"{100 * float(shares[number, kind]):.1f} %" for kind in seen]
        cells += [f"{100 * float(efficiency[number, kind]):.3g} %" for kind in seen]
        table.add_row(layer_name(study, number).removeprefix("layer "), *cells)
    return table
