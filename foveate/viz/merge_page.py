"""One HTML file to look through the stages of a plan: what survived, what was dropped, and what each survivor stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.trace import MediumTrace
from foveate.viz.attention_page import data_uri
from foveate.viz.packages import require
from foveate.viz.parts import Part, groups_of
from foveate.viz.regions import PALETTE, Regions, regions_of

_TEMPLATE = Path(__file__).parent / "assets" / "merge.html.j2"


@dataclass(frozen=True)
class MergeHeading:
    """What the page says above the pictures."""

    plan: str
    question: str
    model: str


def merge_page(media: Sequence[tuple[MediumTrace, list[Part]]], heading: MergeHeading) -> str:
    """The page as text; it loads nothing. It reads the trace only, so it serves every plan.

    Args:
        media: media of one prompt that met the same stages, each with the parts that are drawn of it. The frames of a video
            become a strip with a timeline.
        heading: texts.

    Raises:
        MissingPackage: without jinja2.
    """
    require("jinja2")
    from jinja2 import Environment, StrictUndefined

    stages = [text for text, _ in media[0][0].stages]
    data = {
        "palette": PALETTE,
        "stages": stages,
        "groups": [_group(group) for group in groups_of(media)],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(data=data, heading=heading)


def _group(group: Sequence[tuple[MediumTrace, list[Part]]]) -> dict[str, Any]:
    """A picture, or a video: one medium, or one for each frame."""
    moment = group[0][1][0].moment
    return {
        "film": None if moment is None else moment.name,
        "media": [_medium(entry, parts, regions_of(entry, parts)) for entry, parts in group],
    }


def _medium(entry: MediumTrace, parts: Sequence[Part], stages: Sequence[Regions]) -> dict[str, Any]:
    return {
        "tokens": entry.medium.shape.grid_tokens,
        "parts": [
            {
                "title": part.title,
                "caption": part.title if part.moment is None else part.moment.label,
                "seconds": None if part.moment is None else part.moment.seconds,
                "rows": part.rows,
                "columns": part.columns,
                "start": part.start,
                "aspect": part.aspect,
                "picture": None if part.picture is None else data_uri(part.picture),
            }
            for part in parts
        ],
        "stages": [_stage(regions) for regions in stages],
    }


def _stage(regions: Regions) -> dict[str, Any]:
    """Survivors, their colours and members, flat: `cuts[i]` is where the members of survivor i end."""
    tokens = [token for own in regions.members for token, _ in own]
    weights = [float(f"{weight:.5g}") for own in regions.members for _, weight in own]
    cuts, total = [], 0
    for own in regions.members:
        total += len(own)
        cuts.append(total)
    return {"kept": regions.kept, "colors": regions.colors, "cuts": cuts, "tokens": tokens, "weights": weights}
