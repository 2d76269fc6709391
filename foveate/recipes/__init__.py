"""One file per recipe: a short text that expands to several stages. The file name is the name in specs.

A recipe is for what one method line cannot say: published systems with stages in the encoder and in the LLM, schedules.
Plans store the expanded stages, never the recipe.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from foveate.core import registry
from foveate.core.budget import Budget, Rounding
from foveate.core.plan import Stage
from foveate.errors import SpecError, did_you_mean

_GROUP = "foveate.recipes"


@dataclass(frozen=True)
class Recipe(ABC):
    """Fields are the recipe's options; lists and ranges arrive as tuples.

    Class attributes:
        notes: lines that `foveate methods` shows: presets and where they come from, known limits.
    """

    notes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def expand(self) -> tuple[Stage, ...]:
        """Return the stages in the order in which the model meets them."""


def rounded(recipe: str, budgets: tuple[Budget, ...], name: str) -> tuple[Budget, ...]:
    """The ratios among a recipe's budgets with the rounding of that name; SpecError for a name that is none."""
    known = [rounding.value for rounding in Rounding]
    if name not in known:
        raise SpecError(f"{recipe}(rounding={name}) is not known." + did_you_mean(name, known))
    return tuple(budget if budget.ratio is None else replace(budget, rounding=Rounding(name)) for budget in budgets)


def names() -> list[str]:
    """Names of all recipes."""
    return sorted({*registry.file_names(sys.modules[__name__]), *registry.entry_point_targets(_GROUP)})


def get(name: str) -> type[Recipe]:
    """Return the class of a recipe, or raise UnknownName."""
    return registry.find_class(sys.modules[__name__], _GROUP, name, Recipe, "recipe")
