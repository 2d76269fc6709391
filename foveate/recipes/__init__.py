"""One file per recipe: a short text that expands to several stages. The file name is the name in specs.

A recipe is for what one method line cannot say: published systems with stages in the encoder and in the LLM, schedules.
Plans store the expanded stages, never the recipe.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar

from foveate.core import registry
from foveate.core.budget import Budget, Rounding
from foveate.core.plan import Plan, Stage
from foveate.core.text import Written
from foveate.errors import SpecError, did_you_mean


@dataclass(frozen=True)
class Recipe(Written, ABC):
    """Fields are the recipe's options; lists and ranges arrive as tuples.

    Class attributes:
        notes: lines that `foveate methods` shows: presets and where they come from, known limits.
    """

    notes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def expand(self) -> tuple[Stage, ...]:
        """Return the stages in the order in which the model meets them."""

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        """Texts that together use every option. Without another word: the name alone.

        `{k}` and `{k2}` stand for decoder layers in front of which any method can act, the first one and a later one, `{v}` for
        an encoder layer and `{path}` for the folder of trained predictors.
        """
        return (f"{cls.__module__.rpartition('.')[2]}()",)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The same, as plans have it: a recipe can be attached, and joined to others with `|`."""
        return self.expand()

    def __or__(self, other: Any) -> Plan:
        joined: Plan = Plan(self.stages) | other
        return joined


def rounded(recipe: str, budgets: tuple[Budget, ...], name: str) -> tuple[Budget, ...]:
    """The ratios among a recipe's budgets with the rounding of that name; SpecError for a name that is none."""
    known = [rounding.value for rounding in Rounding]
    if name not in known:
        raise SpecError(f"{recipe}(rounding={name}) is not known." + did_you_mean(name, known))
    return tuple(budget if budget.ratio is None else replace(budget, rounding=Rounding(name)) for budget in budgets)


def _check(name: str, recipe: type[Recipe]) -> None:
    if all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(recipe)):
        recipe()
    if not isinstance(recipe.notes, tuple) or not all(isinstance(note, str) for note in recipe.notes):
        raise TypeError("notes is a tuple of lines")


_KIND = registry.Kind(sys.modules[__name__], Recipe, "recipe", _check)


def names() -> list[str]:
    """Names of all recipes."""
    return registry.names(_KIND)


def outside() -> list[str]:
    """Names of the recipes of other packages."""
    return sorted(registry.outside(_KIND))


def has(name: str) -> bool:
    """Whether a recipe of ours or of another package has the name; nothing is loaded."""
    return registry.has(_KIND, name)


def get(name: str) -> type[Recipe]:
    """Return the class of a recipe, or raise UnknownName or PluginError."""
    return registry.find_class(_KIND, name)


def class_named(name: str) -> type[Recipe] | None:
    """The class of ours with this name, such as `Staged`, or None."""
    return registry.class_named(_KIND, name)


def class_names() -> list[str]:
    """Names of the classes of ours."""
    return registry.class_names(_KIND)
