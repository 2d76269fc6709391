"""Plans as people write and store them: text, JSON, files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from foveate import methods, recipes
from foveate.core.budget import Rounding
from foveate.core.layout import Role
from foveate.core.method import Method
from foveate.core.plan import MOST_STAGES, Effect, Scope, Stage
from foveate.core.plan import Plan as CorePlan
from foveate.core.site import Point, Site, SiteKind
from foveate.errors import FoveateError, InputError, PlanError, SpecError, UnknownName, did_you_mean
from foveate.files.paths import user_path
from foveate.files.reading import parse_json, read_text
from foveate.files.writing import write_file
from foveate.spec import stored
from foveate.spec.grammar import Call, Value, parse_calls
from foveate.spec.hints import nearest_place, refuse_foreign_words
from foveate.spec.words import read_budget, read_fields, shown, write_fields

_LAYER_DIGITS, _MOST_BYTES = 6, 2**20
_RESERVED = ("layer", "site", "point", "keep", "scope", "role", "effect", "rounding")


class Plan(CorePlan):
    """A plan that can be read and written. `Plan.parse(str(plan)) == plan` and the JSON round trip is exact."""

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read a spec such as `"fastv(layer=2, keep=0.5)"`; stages are joined with `|`, "none" is the plain model.

        Raises:
            SpecError, BudgetError, PlanError, UnknownName: one line that says what was given and what to write.
        """
        calls = parse_calls(text)
        if [(call.name, call.words) for call in calls] == [("none", {})]:
            return cls()
        return cls(tuple(stage for call in calls[: MOST_STAGES + 1] for stage in _stages(call)))

    @classmethod
    def of(cls, plan: str | CorePlan | Stage | Iterable[Stage]) -> Plan:
        """Accept everything that `attach` accepts as a plan: a spec, a plan, one stage or several."""
        if isinstance(plan, str):
            return cls.parse(plan)
        if isinstance(plan, CorePlan):
            return cls(plan.stages)
        if isinstance(plan, Stage):
            return cls((plan,))
        stages = tuple(islice(plan, MOST_STAGES + 1)) if isinstance(plan, Iterable) else (plan,)
        for stage in stages:
            if not isinstance(stage, Stage):
                raise SpecError(f"a plan is a spec string, a Plan or Stage objects, not {type(stage).__name__}")
        return cls(stages)

    def __str__(self) -> str:
        return " | ".join(stage_text(stage) for stage in self.stages) or "none"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary with the expanded stages."""
        return stored.write_plan(self.stages)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            SpecError, BudgetError, PlanError, UnknownName: one line that names the stage and what is wrong with it.
        """
        return cls(stored.read_plan(data))

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, which is there whole or not at all.

        Raises:
            SpecError: one line that says why it cannot be written.
        """
        try:
            write_file(user_path(path), json.dumps(self.to_json(), indent=2) + "\n")
        except InputError as error:
            raise SpecError(f"the plan is not saved: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file of at most 1 MiB.

        Raises:
            SpecError, BudgetError, PlanError, UnknownName: one line that says what is wrong with the file.
        """
        try:
            data = parse_json(read_text(user_path(path), _MOST_BYTES, "plan file"), f"plan file {path}")
        except InputError as error:
            raise SpecError(str(error)) from None
        try:
            return cls.from_json(data)
        except FoveateError as error:
            raise type(error)(f"plan file {path}: {error}") from None


def stage_text(stage: Stage) -> str:
    """The canonical text of a stage: defaults are left out."""
    words = []
    if stage.site.kind is _usual_site(stage.method):
        words.append(f"layer={stage.site.layer}")
    else:
        words.append(f"site={stage.site.kind.value}")
        words += [f"layer={stage.site.layer}"] if stage.site.layer is not None else []
    words += [f"point={stage.site.point.value}"] if stage.site.point is not Point.BEFORE else []
    if stage.budget is not None:
        words.append(f"keep={stage.budget}")
        words += [f"rounding={stage.budget.rounding.value}"] if stage.budget.rounding is not Rounding.HALF_UP else []
    words += write_fields(stage.method)
    words += [f"scope={stage.scope.value}"] if stage.scope is not Scope.MEDIUM else []
    words += [f"role={stage.role.name.lower()}"] if stage.role is not _usual_role(stage.method) else []
    words += [f"effect={stage.effect.value}"] if stage.effect is not Effect.DROP else []
    return f"{stage.method.name}({', '.join(words)})"


def _stages(call: Call) -> tuple[Stage, ...]:
    if recipes.has(call.name):
        known = recipes.get(call.name)
        refuse_foreign_words(call, [field.name for field in fields(known)])
        recipe = read_fields(known, call.words, call.name)
        expanded: tuple[Stage, ...] = recipe.expand()
        return expanded
    if call.name == "none":
        raise SpecError("'none' is the plain model and stands alone: leave it out, or write nothing else")
    if not methods.has(call.name):
        names = [*methods.names(), *recipes.names(), "none"]
        raise UnknownName(f"unknown method '{call.name}'." + did_you_mean(call.name, names))
    kind = methods.get(call.name)
    refuse_foreign_words(call, [*(field.name for field in fields(kind)), *_RESERVED])
    words = dict(call.words)
    reserved = {word: words.pop(word) for word in _RESERVED if word in words}
    method: Method = read_fields(kind, words, call.name, _RESERVED)
    rounding = _choice(Rounding, reserved.get("rounding"), "rounding", Rounding.HALF_UP)
    return (
        Stage(
            site=_site(method, reserved),
            method=method,
            budget=read_budget(reserved["keep"], rounding) if "keep" in reserved else None,
            scope=_choice(Scope, reserved.get("scope"), "scope", Scope.MEDIUM),
            role=_role(reserved["role"]) if "role" in reserved else _usual_role(method),
            effect=_choice(Effect, reserved.get("effect"), "effect", Effect.DROP),
        ),
    )


def _usual_site(method: Method) -> SiteKind:
    """The kind of site that `layer=` alone means."""
    return SiteKind.DECODE if method.sites == (SiteKind.DECODE,) else SiteKind.LLM_LAYER


def _usual_role(method: Method) -> Role:
    return Role.VISUAL if Role.VISUAL in method.roles else method.roles[0]


def _site(method: Method, words: dict[str, Value]) -> Site:
    name, layer = method.name, None
    point = _choice(Point, words.get("point"), "point", Point.BEFORE)
    if "layer" in words:
        text = _text(words["layer"])
        if not (text.isascii() and text.isdigit() and len(text) <= _LAYER_DIGITS):
            near = re.search(rf"(?<![-.0-9])[0-9]{{1,{_LAYER_DIGITS}}}(?![0-9])", text)
            raise SpecError(f"{name}(layer={text}): a layer is a whole number >= 1" + (f", layer={near[0]}?" if near else ""))
        layer = int(text)
        if layer == 0 and "site" not in words and _usual_site(method) is SiteKind.LLM_LAYER:
            raise PlanError(f"{name}(layer=0): no decoder layer has run yet; {nearest_place(method)}")
    if "site" not in words:
        if layer is None:
            raise SpecError(f"{name} needs a place: layer=2 (before decoder layer 2) or site=pre_llm (before the LLM)")
        return Site(_usual_site(method), layer, point)
    kind = _choice(SiteKind, words["site"], "site", SiteKind.PRE_LLM)
    return Site(kind, layer, point)


def _choice(options: Any, value: Value | None, word: str, default: Any) -> Any:
    if value is None:
        return default
    text = _text(value)
    known = [option.value for option in options]
    if text not in known:
        raise SpecError(f"{word}={text} is not known." + did_you_mean(text, known))
    return options(text)


def _role(value: Value) -> Role:
    names = {role.name.lower(): role for role in Role}
    text = _text(value)
    if text not in names:
        raise SpecError(f"role={text} is not known." + did_you_mean(text, names))
    return names[text]


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        raise SpecError(
            f"{shown(value)} is a list where one value is expected; several layers: staged(layers=[8, 16], keep=[0.5, 0.5])"
        )
    return shown(value)
