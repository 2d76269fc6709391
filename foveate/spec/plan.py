"""Plans as people write and store them: text, JSON, files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

from foveate import methods, recipes
from foveate.core.method import Method
from foveate.core.placing import place
from foveate.core.plan import MOST_STAGES, Plan, Stage
from foveate.core.site import SiteKind
from foveate.core.text import usual_site
from foveate.errors import BudgetError, FoveateError, InputError, PlanError, SpecError, UnknownName, did_you_mean
from foveate.files.paths import user_path
from foveate.files.reading import parse_json, read_text
from foveate.files.writing import write_file
from foveate.recipes import Recipe
from foveate.spec import stored
from foveate.spec.grammar import Call, Value, parse_calls
from foveate.spec.hints import nearest_place, refuse_foreign_words
from foveate.spec.words import read_fields, shown

PlanLike: TypeAlias = "str | Plan | Stage | Recipe | Iterable[Stage]"

_LAYER_DIGITS, _MOST_BYTES = 6, 2**20
_RESERVED = ("layer", "site", "point", "keep", "scope", "role", "effect", "rounding", "at_least")


def parse(text: str) -> Plan:
    """Read a spec such as `"fastv(layer=2, keep=0.5)"`; stages are joined with `|`, "none" is the plain model.

    `parse(str(plan)) == plan` for every plan.

    Raises:
        SpecError, BudgetError, PlanError, UnknownName: one line that says what was given and what to write.
    """
    calls = parse_calls(text)
    if [(call.name, call.words) for call in calls] == [("none", {})]:
        return Plan()
    return Plan(tuple(stage for call in calls[: MOST_STAGES + 1] for stage in _stages(call)))


def as_plan(plan: PlanLike) -> Plan:
    """Accept everything that `attach` accepts as a plan: a spec, a plan, a recipe, one stage or several."""
    return parse(plan) if isinstance(plan, str) else Plan.of(plan)


def to_json(plan: Plan) -> dict[str, Any]:
    """A JSON-ready dictionary with the expanded stages."""
    return stored.write_plan(plan.stages)


def from_json(data: Any) -> Plan:
    """Read what `to_json` wrote; the round trip is exact.

    Raises:
        SpecError, BudgetError, PlanError, UnknownName: one line that names the stage and what is wrong with it.
    """
    return Plan(stored.read_plan(data))


def save_plan(plan: PlanLike, path: str | Path) -> None:
    """Write a plan to a JSON file, which is there whole or not at all.

    Raises:
        SpecError: one line that says why it cannot be written.
    """
    try:
        write_file(user_path(path), json.dumps(to_json(as_plan(plan)), indent=2) + "\n")
    except InputError as error:
        raise SpecError(f"the plan is not saved: {error}") from None


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a JSON file of at most 1 MiB.

    Raises:
        SpecError, BudgetError, PlanError, UnknownName: one line that says what is wrong with the file.
    """
    try:
        data = parse_json(read_text(user_path(path), _MOST_BYTES, "plan file"), f"plan file {path}")
    except InputError as error:
        raise SpecError(str(error)) from None
    try:
        return from_json(data)
    except FoveateError as error:
        raise type(error)(f"plan file {path}: {error}") from None


def _stages(call: Call) -> tuple[Stage, ...]:
    if recipes.has(call.name):
        known = recipes.get(call.name)
        refuse_foreign_words(call, [field.name for field in fields(known)])
        recipe: Recipe = read_fields(known, call.words, call.name)
        return recipe.expand()
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
    if isinstance(keep := reserved.get("keep"), tuple):
        raise BudgetError(f"keep={shown(keep)}: one value is expected here, not a list; write e.g. keep=0.5")
    given = {word: _text(value) for word, value in reserved.items()}
    return (
        place(
            method,
            _layer(method, given),
            given.get("keep"),
            given.get("site"),
            given.get("point", "before"),
            given.get("scope", "medium"),
            given.get("role"),
            given.get("effect", "drop"),
            given.get("rounding", "half_up"),
            _floor(given.get("at_least", "1")),
        ),
    )


def _layer(method: Method, words: dict[str, str]) -> int | None:
    if "layer" not in words:
        return None
    name, text = method.name, words["layer"]
    if not (text.isascii() and text.isdigit() and len(text) <= _LAYER_DIGITS):
        near = re.search(rf"(?<![-.0-9])[0-9]{{1,{_LAYER_DIGITS}}}(?![0-9])", text)
        raise SpecError(f"{name}(layer={text}): a layer is a whole number >= 1" + (f", layer={near[0]}?" if near else ""))
    if int(text) == 0 and "site" not in words and usual_site(method) is SiteKind.LLM_LAYER:
        raise PlanError(f"{name}(layer=0): no decoder layer has run yet; {nearest_place(method)}")
    return int(text)


def _floor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise BudgetError(f"at_least={text}: a whole number is expected here, e.g. at_least=16")
    return int(text)


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        raise SpecError(
            f"{shown(value)} is a list where one value is expected; several layers: staged(layers=[8, 16], keep=[0.5, 0.5])"
        )
    return shown(value)
