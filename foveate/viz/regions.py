"""Which region of a picture each survivor of a stage stands for, and a colour for it that its neighbours do not have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.trace import MediumTrace
from foveate.viz.parts import Part

# Okabe and Ito's colours without grey and black: apart for colour-blind eyes, readable on light and dark.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


@dataclass(frozen=True)
class Regions:
    """A stage's survivors and what they are made of. Tokens are numbered as in the medium's original grids.

    Attributes:
        stage: text of the stage.
        kept: survivors, ascending.
        members: for each survivor (token, weight) of every original it is made of, itself first.
        colors: for each survivor a number into `PALETTE`, or -1 if it stands for itself alone.
    """

    stage: str
    kept: tuple[int, ...]
    members: tuple[tuple[tuple[int, float], ...], ...]
    colors: tuple[int, ...]

    def hosts(self) -> dict[int, list[tuple[int, float]]]:
        """For each original that lives on, (number of the survivor in `kept`, weight), the largest weight first."""
        found: dict[int, list[tuple[int, float]]] = {}
        for survivor, members in enumerate(self.members):
            for token, weight in members:
                found.setdefault(token, []).append((survivor, weight))
        return {token: sorted(hosts, key=lambda host: -abs(host[1])) for token, hosts in found.items()}

    def in_part(self, part: Part) -> list[int]:
        """Numbers of the survivors that lie within a part."""
        return [number for number, token in enumerate(self.kept) if part.start <= token < part.stop]


def regions_of(entry: MediumTrace, parts: list[Part]) -> list[Regions]:
    """The regions after every stage of a medium, in order."""
    found = []
    for (stage, matrix), kept in zip(entry.stages, entry.kept, strict=True):
        members = _members(matrix, kept)
        numbers = tuple(int(token) for token in kept)
        found.append(Regions(stage, numbers, members, _colors(members, parts)))
    return found


def _members(matrix: Tensor, kept: Tensor) -> tuple[tuple[tuple[int, float], ...], ...]:
    matrix = matrix.coalesce()
    (rows, columns), weights = matrix.indices(), matrix.values()
    cuts = torch.bincount(rows, minlength=len(kept)).cumsum(0).tolist()
    members, start = [], 0
    for survivor, stop in zip(kept.tolist(), cuts, strict=True):
        own = list(zip(columns[start:stop].tolist(), weights[start:stop].tolist(), strict=True))
        members.append(tuple(sorted(own, key=lambda member: (member[0] != survivor, member[0]))))
        start = stop
    return tuple(members)


def _colors(members: tuple[tuple[tuple[int, float], ...], ...], parts: list[Part]) -> tuple[int, ...]:
    """Greedy: a region takes the first colour that no region beside it has, beginning elsewhere each time."""
    owner: dict[int, int] = {}
    for survivor, own in enumerate(members):
        for token, _ in own:
            owner.setdefault(token, survivor)
    colors = [-1] * len(members)
    for survivor, own in enumerate(members):
        if len(own) < 2:
            continue
        beside = {owner[near] for token, _ in own for near in _neighbours(token, parts) if near in owner}
        taken = {colors[other] for other in beside if other != survivor}
        order = [(survivor + shift) % len(PALETTE) for shift in range(len(PALETTE))]
        colors[survivor] = next((color for color in order if color not in taken), order[0])
    return tuple(colors)


def _neighbours(token: int, parts: list[Part]) -> list[int]:
    for part in parts:
        if part.start <= token < part.stop:
            y, x = divmod(token - part.start, part.columns)
            near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in near if 0 <= v < part.rows and 0 <= u < part.columns]
            return [part.start + v * part.columns + u for v, u in inside]
    return []
