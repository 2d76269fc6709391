"""One HTML file to look through an attention study: a slider over layers, the pictures with their heat. It loads nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from foveate.core.attention import KINDS, AttentionStudy, Raters
from foveate.core.layout import Medium
from foveate.viz.attention_plot import KIND_NAMES, RATER_NAMES, layer_name, scale_of
from foveate.viz.packages import require
from foveate.viz.parts import Part

_TEMPLATE = Path(__file__).parent / "assets" / "attention.html.j2"
# Pixels of the longer side of a picture within the page.
_LONGEST = 640


@dataclass(frozen=True)
class Heading:
    """What the page says above the pictures."""

    question: str
    answer: str
    model: str


def attention_page(
    study: AttentionStudy, media: Sequence[tuple[Medium, Sequence[Part]]], heading: Heading, row: int = 0
) -> str:
    """The page as text. Its numbers are those of the study, exact in fp32.

    Args:
        study: the study.
        media: the row's media with the parts that are drawn of each.
        heading: texts.
        row: batch row.

    Raises:
        MissingPackage: without jinja2.
    """
    require("jinja2")
    from jinja2 import Environment, StrictUndefined

    raters = [kind for kind in Raters if kind is Raters.INSTRUCTION or study.has_answer(row)]
    data = {
        "layers": [layer_name(study, number) for number in range(len(study.layers))],
        "raters": [_rater(study, kind, row) for kind in raters],
        "parts": [_part(study, raters, medium, part) for medium, parts in media for part in parts],
    }
    counts = study.token_counts()[row].tolist()
    kinds = [{"name": KIND_NAMES[kind], "count": count} for kind, count in zip(KINDS, counts, strict=True)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    windowed = any(window is not None for window in study.windows)
    return template.render(data=data, kinds=kinds, heading=heading, windowed=windowed)


def _rater(study: AttentionStudy, raters: Raters, row: int) -> dict[str, Any]:
    bottom, top = scale_of(study, raters, row)
    return {
        "key": raters.value,
        "name": RATER_NAMES[raters],
        "bottom": bottom,
        "top": top,
        "shares": study.shares(raters)[:, row].tolist(),
        "efficiency": [
            [None if math.isnan(value) else value for value in layer] for layer in study.efficiency(raters)[:, row].tolist()
        ],
    }


def _part(study: AttentionStudy, raters: Sequence[Raters], medium: Medium, part: Part) -> dict[str, Any]:
    return {
        "title": part.title,
        "rows": part.rows,
        "columns": part.columns,
        "aspect": part.aspect,
        "picture": None if part.picture is None else _data_uri(part.picture),
        "values": {kind.value: _packed(study.received(kind, medium)[:, part.start : part.stop]) for kind in raters},
    }


def _packed(values: Tensor) -> str:
    """[L, N] fp32, little-endian, base64."""
    return base64.b64encode(values.contiguous().numpy().astype("<f4").tobytes()).decode("ascii")


def _data_uri(picture: Image.Image) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    shown.save(out, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
