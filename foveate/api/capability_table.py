"""What works with what, as it was measured when the package was made: read in milliseconds, without torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate import families

FILE = Path(__file__).parent / "capabilities.json"


@dataclass(frozen=True)
class MethodCapability:
    """One row of `foveate methods`. `looks_at` says by what a method chooses, `published` who found it how good."""

    name: str
    summary: str
    paper: str
    options: str
    sites: tuple[str, ...]
    effect: str
    masks: bool
    looks_at: str
    published: str


@dataclass(frozen=True)
class RecipeCapability:
    """One row of its second table."""

    name: str
    summary: str
    notes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class FamilyCapability:
    """One row of `foveate models`. `sites`, `backends` and `caches` were tried; `refused` gives the reasons in words.

    A row without sites is a model type that no family file can serve; `not_served` says why.
    """

    title: str
    name: str
    model_types: tuple[str, ...]
    sites: tuple[str, ...]
    backends: tuple[str, ...]
    caches: tuple[str, ...]
    video: bool
    refused: dict[str, str]
    notes: str
    not_served: str = ""


@dataclass(frozen=True)
class CapabilityTable:
    """All rows of ours; those of other packages are tried where they are installed.

    Attributes:
        transformers: the version on which models were tried.
    """

    transformers: str
    methods: tuple[MethodCapability, ...]
    recipes: tuple[RecipeCapability, ...]
    families: tuple[FamilyCapability, ...]

    def to_text(self) -> str:
        """The packaged file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def packaged() -> CapabilityTable:
    """The table that came with the package."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    return CapabilityTable(
        transformers=data["transformers"],
        methods=tuple(MethodCapability(**_tuples(row)) for row in data["methods"]),
        recipes=tuple(RecipeCapability(**_tuples(row)) for row in data["recipes"]),
        families=tuple(FamilyCapability(**_tuples(row)) for row in data["families"]),
    )


def refused_models() -> list[FamilyCapability]:
    """The model types that no family file can serve, and the reasons in words."""
    return [
        FamilyCapability(model_type, model_type, (model_type,), (), (), (), False, {}, "", reason)
        for model_type, reason in families.refused().items()
    ]


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
