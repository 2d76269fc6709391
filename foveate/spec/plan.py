"""Plans as people write and store them: text, JSON, files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from foveate import methods, recipes
from foveate.core.budget import Budget, Rounding, Unit
from foveate.core.layout import Role
from foveate.core.method import Method
from foveate.core.plan import Effect, Scope, Stage
from foveate.core.plan import Plan as CorePlan
from foveate.core.site import Site, SiteKind
from foveate.errors import SpecError, UnknownName, did_you_mean
from foveate.spec.grammar import Bare, Call, Value, parse_calls
from foveate.spec.words import read_budget, read_fields, write_fields

FORMAT_VERSION = 1
_RESERVED = ("layer", "site", "keep", "scope", "role", "effect", "rounding")


class Plan(CorePlan):
    """A plan that can be read and written. `Plan.parse(str(plan)) == plan` and the JSON round trip is exact."""

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read a spec such as `"fastv(layer=2, keep=0.5)"`; stages are joined with `|`, "none" is the plain model.

        Raises:
            SpecError, BudgetError, PlanError, UnknownName: one line that says what was given and what to write.
        """
        stages: list[Stage] = []
        if text.strip() == "none":
            return cls()
        for call in parse_calls(text):
            stages += _stages(call)
        return cls(tuple(stages))

    @classmethod
    def of(cls, plan: str | CorePlan | Stage | Iterable[Stage]) -> Plan:
        """Accept everything that `attach` accepts as a plan: a spec, a plan, one stage or several."""
        if isinstance(plan, str):
            return cls.parse(plan)
        if isinstance(plan, CorePlan):
            return cls(plan.stages)
        if isinstance(plan, Stage):
            return cls((plan,))
        return cls(tuple(plan))

    def __str__(self) -> str:
        return " | ".join(stage_text(stage) for stage in self.stages) or "none"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary with the expanded stages."""
        return {"format": FORMAT_VERSION, "stages": [_stage_to_json(stage) for stage in self.stages]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        if data.get("format") != FORMAT_VERSION:
            raise SpecError(f"plan format {data.get('format')!r} is not known; this version reads format {FORMAT_VERSION}")
        return cls(tuple(_stage_from_json(stage) for stage in data["stages"]))

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"cannot read plan file {path}: {error.strerror}") from None
        except ValueError:
            raise SpecError(f"plan file {path} is not JSON") from None
        return cls.from_json(data)


def stage_text(stage: Stage) -> str:
    """The canonical text of a stage: defaults are left out."""
    words = []
    if stage.site.kind is SiteKind.LLM_LAYER:
        words.append(f"layer={stage.site.layer}")
    else:
        words.append(f"site={stage.site.kind.value}")
        words += [f"layer={stage.site.layer}"] if stage.site.layer is not None else []
    if stage.budget is not None:
        words.append(f"keep={stage.budget}")
        words += [f"rounding={stage.budget.rounding.value}"] if stage.budget.rounding is not Rounding.HALF_UP else []
    words += write_fields(stage.method)
    words += [f"scope={stage.scope.value}"] if stage.scope is not Scope.MEDIUM else []
    words += [f"role={stage.role.name.lower()}"] if stage.role is not Role.VISUAL else []
    words += [f"effect={stage.effect.value}"] if stage.effect is not Effect.DROP else []
    return f"{stage.method.name}({', '.join(words)})"


def _stages(call: Call) -> tuple[Stage, ...]:
    if call.name in recipes.names():
        recipe = read_fields(recipes.get(call.name), call.words, call.name)
        expanded: tuple[Stage, ...] = recipe.expand()
        return expanded
    if call.name not in methods.names():
        known = [*methods.names(), *recipes.names(), "none"]
        raise UnknownName(f"unknown method '{call.name}'." + did_you_mean(call.name, known))
    words = dict(call.words)
    reserved = {word: words.pop(word) for word in _RESERVED if word in words}
    method: Method = read_fields(methods.get(call.name), words, call.name, _RESERVED)
    rounding = _choice(Rounding, reserved.get("rounding"), "rounding", Rounding.HALF_UP)
    return (
        Stage(
            site=_site(call.name, reserved),
            method=method,
            budget=read_budget(reserved["keep"], rounding) if "keep" in reserved else None,
            scope=_choice(Scope, reserved.get("scope"), "scope", Scope.MEDIUM),
            role=_role(reserved.get("role")),
            effect=_choice(Effect, reserved.get("effect"), "effect", Effect.DROP),
        ),
    )


def _site(name: str, words: dict[str, Value]) -> Site:
    layer = None
    if "layer" in words:
        text = _text(words["layer"])
        if not text.isdigit():
            raise SpecError(f"{name}(layer={text}): a layer is a whole number >= 1")
        layer = int(text)
    if "site" not in words:
        if layer is None:
            raise SpecError(f"{name} needs a place: layer=2 (before decoder layer 2) or site=pre_llm (before the LLM)")
        return Site.llm_layer(layer)
    kind = _choice(SiteKind, words["site"], "site", SiteKind.PRE_LLM)
    return Site(kind, layer)


def _choice(options: Any, value: Value | None, word: str, default: Any) -> Any:
    if value is None:
        return default
    text = _text(value)
    known = [option.value for option in options]
    if text not in known:
        raise SpecError(f"{word}={text} is not known." + did_you_mean(text, known))
    return options(text)


def _role(value: Value | None) -> Role:
    if value is None:
        return Role.VISUAL
    names = {role.name.lower(): role for role in Role}
    text = _text(value)
    if text not in names:
        raise SpecError(f"role={text} is not known." + did_you_mean(text, names))
    return names[text]


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        raise SpecError("a list stands where one value is expected")
    return value.text if isinstance(value, Bare) else value


def _stage_to_json(stage: Stage) -> dict[str, Any]:
    options = {field.name: getattr(stage.method, field.name) for field in fields(stage.method)}
    return {
        "method": stage.method.name,
        "options": options,
        "site": stage.site.kind.value,
        "layer": stage.site.layer,
        "keep": None if stage.budget is None else _budget_to_json(stage.budget),
        "scope": stage.scope.value,
        "role": stage.role.name.lower(),
        "effect": stage.effect.value,
    }


def _budget_to_json(budget: Budget) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if budget.ratio is not None:
        # A JSON number where it is exact, a string where a float would round.
        out["ratio"] = float(budget.ratio) if Decimal(str(float(budget.ratio))) == budget.ratio else str(budget.ratio)
    elif budget.count is not None:
        out["count"] = budget.count
    else:
        out["threshold"] = budget.threshold
    if budget.rounding is not Rounding.HALF_UP:
        out["rounding"] = budget.rounding.value
    if budget.unit is not Unit.TOKEN:
        out["unit"] = budget.unit.value
    return out


def _stage_from_json(data: dict[str, Any]) -> Stage:
    keep = data["keep"]
    budget = None
    if keep is not None:
        budget = Budget(
            ratio=Decimal(str(keep["ratio"])) if "ratio" in keep else None,
            count=keep.get("count"),
            threshold=keep.get("threshold"),
            rounding=Rounding(keep.get("rounding", "half_up")),
            unit=Unit(keep.get("unit", "token")),
        )
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in data["options"].items()}
    return Stage(
        site=Site(SiteKind(data["site"]), data["layer"]),
        method=methods.get(data["method"])(**options),
        budget=budget,
        scope=Scope(data["scope"]),
        role=Role[data["role"].upper()],
        effect=Effect(data["effect"]),
    )
