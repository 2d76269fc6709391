"""Plans as JSON: what a plan file holds. Reading trusts nothing; every refusal is one line that names the stage."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any, get_args, get_origin, get_type_hints

from foveate import methods
from foveate.core.budget import Budget, Rounding
from foveate.core.layout import Role
from foveate.core.method import Method
from foveate.core.plan import MOST_STAGES, Effect, Scope, Stage
from foveate.core.site import Point, Site, SiteKind
from foveate.errors import FoveateError, PlanError, SpecError, did_you_mean
from foveate.spec.hints import nearest_place

FORMAT_VERSION = 1
# Of the lists and numbers that an option takes.
_MOST_ITEMS, _LARGEST = 10_000, 10**18
_STAGE_KEYS = ("method", "options", "site", "layer", "keep", "scope", "role", "effect")
_BUDGET_KEYS = ("ratio", "count", "threshold", "energy", "rounding", "at_least")


def write_plan(stages: tuple[Stage, ...]) -> dict[str, Any]:
    """A JSON-ready dictionary."""
    return {"format": FORMAT_VERSION, "stages": [_write_stage(stage) for stage in stages]}


def read_plan(data: Any) -> tuple[Stage, ...]:
    """Read what `write_plan` wrote.

    Raises:
        SpecError, BudgetError, PlanError, UnknownName: one line that names the stage and what is wrong with it.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"a plan is a JSON object with 'format' and 'stages', not {_kind(data)}")
    version = data.get("format")
    if not _is_whole(version) or version != FORMAT_VERSION:
        raise SpecError(f"plan format {_shown(version)} is not known; this version reads format {FORMAT_VERSION}")
    _check_keys(data, "a plan", ("format", "stages"))
    if not isinstance(data.get("stages"), list):
        raise SpecError("'stages' must be a list of stages")
    if len(data["stages"]) > MOST_STAGES:
        raise SpecError(f"'stages' holds {len(data['stages']):,} stages: a plan has at most {MOST_STAGES:,}")
    stages = []
    for number, stage in enumerate(data["stages"], start=1):
        try:
            stages.append(_read_stage(stage))
        except FoveateError as error:
            raise type(error)(f"stage {number}: {error}") from None
    return tuple(stages)


def _write_stage(stage: Stage) -> dict[str, Any]:
    return {
        "method": stage.method.name,
        "options": {field.name: _plain(getattr(stage.method, field.name)) for field in fields(stage.method)},
        "site": stage.site.kind.value,
        "layer": stage.site.layer,
        **({"point": stage.site.point.value} if stage.site.point is not Point.BEFORE else {}),
        "keep": None if stage.budget is None else _write_budget(stage.budget),
        "scope": stage.scope.value,
        "role": stage.role.name.lower(),
        "effect": stage.effect.value,
    }


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _write_budget(budget: Budget) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if budget.ratio is not None:
        # A JSON number where it is exact, a string where a float would round.
        out["ratio"] = float(budget.ratio) if Decimal(str(float(budget.ratio))) == budget.ratio else str(budget.ratio)
    elif budget.count is not None:
        out["count"] = budget.count
    elif budget.threshold is not None:
        out["threshold"] = budget.threshold
    else:
        out["energy"] = budget.energy
    if budget.rounding is not Rounding.HALF_UP:
        out["rounding"] = budget.rounding.value
    if budget.at_least != 1:
        out["at_least"] = budget.at_least
    return out


def _read_stage(data: Any) -> Stage:
    _check_keys(data, "a stage", (*_STAGE_KEYS, "point"))
    for key in _STAGE_KEYS:
        if key not in data:
            raise SpecError(f"'{key}' is missing")
    layer = data["layer"]
    if layer is not None and not _is_whole(layer):
        raise SpecError(f"layer={_shown(layer)}: a layer is a whole number or null")
    method = _read_method(data["method"], data["options"])
    if layer == 0 and data["site"] == SiteKind.LLM_LAYER.value:
        raise PlanError(f"{method.name}(layer=0): no decoder layer has run yet; {nearest_place(method)}")
    roles = {role.name.lower(): role for role in Role}
    return Stage(
        site=Site(_one_of(SiteKind, data, "site"), layer, _one_of(Point, {"point": "before", **data}, "point")),
        method=method,
        budget=None if data["keep"] is None else _read_budget(data["keep"]),
        scope=_one_of(Scope, data, "scope"),
        role=roles[_known(data["role"], "role", list(roles))],
        effect=_one_of(Effect, data, "effect"),
    )


def _read_method(name: Any, options: Any) -> Method:
    if not isinstance(name, str):
        raise SpecError(f"'method' is a name, not {_kind(name)}")
    cls = methods.get(name)
    hints = get_type_hints(cls)
    _check_keys(options, f"the options of {name}", [field.name for field in fields(cls)])
    try:
        return cls(**{key: _read_option(value, hints[key], f"{name}({key}=...)") for key, value in options.items()})
    except TypeError:  # an option without a default is not there
        raise SpecError(f"{name} needs all of: {', '.join(field.name for field in fields(cls))}") from None


def _read_option(value: Any, expected: Any, where: str) -> Any:
    if get_origin(expected) is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{where} takes a list, not {_kind(value)}")
        if len(value) > _MOST_ITEMS:
            raise SpecError(f"{where} takes at most {_MOST_ITEMS:,} items, not {len(value):,}")
        return tuple(_read_option(item, get_args(expected)[0], where) for item in value)
    fits = _is_whole(value) if expected is int else isinstance(value, expected)
    if expected is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        raise SpecError(f"{where} takes {expected.__name__}, not {_kind(value)}")
    if expected in (int, float) and not abs(value) < _LARGEST:  # NaN too
        raise SpecError(f"{where} takes a finite number below 1e18")
    return value


def _read_budget(data: Any) -> Budget:
    _check_keys(data, "'keep'", _BUDGET_KEYS)
    ratio, count = data.get("ratio"), data.get("count")
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, (int, float, str))):
        raise SpecError(f"keep: a ratio is a number, not {_kind(ratio)}")
    if count is not None and not _is_whole(count):
        raise SpecError(f"keep: a count is a whole number, not {_kind(count)}")
    shares = {}
    for key, what in (("threshold", "a threshold"), ("energy", "a share of energy")):
        value = data.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise SpecError(f"keep: {what} is a number, not {_kind(value)}")
        shares[key] = None if value is None else _share(value)
    return Budget(
        ratio=None if ratio is None else Budget.of_ratio(ratio).ratio,
        count=count,
        **shares,
        rounding=_one_of(Rounding, {"rounding": "half_up", **data}, "rounding"),
        at_least=data.get("at_least", 1),
    )


def _share(value: float) -> float:
    return float(value) if 0 < value < 1 else math.nan  # refused by the budget, however many digits it has


def _check_keys(data: Any, what: str, known: Any) -> None:
    if not isinstance(data, Mapping):
        raise SpecError(f"{what} must be a JSON object, not {_kind(data)}")
    for key in data:
        if key not in known:
            raise SpecError(f"'{key}' is not part of {what}." + did_you_mean(str(key), known))


def _one_of(options: Any, data: Mapping[str, Any], key: str) -> Any:
    return options(_known(data[key], key, [option.value for option in options]))


def _known(value: Any, key: str, known: list[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise SpecError(f"{key}={_shown(value)} is not known." + did_you_mean(value if isinstance(value, str) else "", known))
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A JSON value for messages, never larger than a line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return _kind(value)


def _kind(value: Any) -> str:
    """What a JSON value is called."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
