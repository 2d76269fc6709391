"""From plain words to a stage: what `Method.at` and the text of a spec have in common."""

from __future__ import annotations

from typing import Any

from foveate.core.budget import Budget, Rounding
from foveate.core.layout import Role
from foveate.core.method import Method
from foveate.core.plan import Effect, Scope, Stage
from foveate.core.site import Point, Site, SiteKind
from foveate.core.text import usual_role, usual_site
from foveate.errors import SpecError, did_you_mean


def place(
    method: Method,
    layer: int | None,
    keep: float | str | Budget | None,
    site: str | None,
    point: str,
    scope: str,
    role: str | None,
    effect: str,
    rounding: str,
    at_least: int,
) -> Stage:
    """The stage that these words describe; see `Method.at`.

    Raises:
        SpecError, BudgetError, PlanError: one line that says what was given and what to write.
    """
    rounded = choice(Rounding, rounding, "rounding")
    if keep is not None and not isinstance(keep, Budget):
        keep = Budget.read(str(keep), rounded, at_least)
    return Stage(
        site=site_of(method, layer, site, point),
        method=method,
        budget=keep,
        scope=choice(Scope, scope, "scope"),
        role=usual_role(method) if role is None else _role(role),
        effect=choice(Effect, effect, "effect"),
    )


def site_of(method: Method, layer: int | None, site: str | None, point: str) -> Site:
    """The place that `layer` and `site` mean for a method."""
    where = choice(Point, point, "point")
    if site is not None:
        return Site(choice(SiteKind, site, "site"), layer, where)
    if layer is None:
        raise SpecError(f"{method.name} needs a place: layer=2 (before decoder layer 2) or site=pre_llm (before the LLM)")
    return Site(usual_site(method), layer, where)


def choice(options: Any, text: str, word: str) -> Any:
    """The member of an enumeration of texts, or a SpecError that suggests the nearest."""
    known = [option.value for option in options]
    if text not in known:
        raise SpecError(f"{word}={text} is not known." + did_you_mean(text, known))
    return options(text)


def _role(text: str) -> Role:
    names = {role.name.lower(): role for role in Role}
    if text not in names:
        raise SpecError(f"role={text} is not known." + did_you_mean(text, names))
    return names[text]
