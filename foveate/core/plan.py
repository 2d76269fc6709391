"""A plan: stages in the order in which a forward call meets them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from fractions import Fraction
from itertools import islice
from typing import Any, TypeVar

from foveate.core.budget import Budget
from foveate.core.layout import Role
from foveate.core.method import Method, StepMethod, TokenMethod
from foveate.core.shape import MediumShape
from foveate.core.site import Site, SiteKind
from foveate.core.text import stage_text
from foveate.errors import BudgetError, PlanError, SpecError

_ORDER = list(SiteKind)
_LARGEST = 10**18


class Scope(str, Enum):
    """Among which tokens a stage ranks: CROP within each crop of an image or frame of a video, FRAME within each frame of a
    video or each whole image, MEDIUM within each image or video, SAMPLE among all media of a row."""

    MEDIUM = "medium"
    CROP = "crop"
    FRAME = "frame"
    SAMPLE = "sample"


_SCOPES = [Scope.CROP, Scope.FRAME, Scope.MEDIUM, Scope.SAMPLE]


class Effect(str, Enum):
    """DROP removes tokens. MASK hides them from the layers after the stage and decides again at each step."""

    DROP = "drop"
    MASK = "mask"


@dataclass(frozen=True, repr=False)
class Stage:
    """A site, a method and a budget. `budget` is None only for a method that fixes its own count.

    `stage | other` is a plan of both; the text of a stage is what `foveate.parse` reads back.
    """

    site: Site
    method: Method
    budget: Budget | None = None
    scope: Scope = Scope.MEDIUM
    role: Role = Role.VISUAL
    effect: Effect = Effect.DROP

    def __post_init__(self) -> None:
        method, name = self.method, self.method.name
        for option in fields(method):
            value = getattr(method, option.name)
            if any(isinstance(n, int) and abs(n) >= _LARGEST for n in (value if isinstance(value, tuple) else (value,))):
                raise PlanError(f"{name}({option.name}=...): a whole number has at most 18 digits, so that texts can hold it")
        if self.site.kind not in method.sites:
            allowed = ", ".join(kind.value for kind in method.sites)
            hint = ""
            if self.site.kind is SiteKind.PRE_LLM:
                hint = "; no attention exists before the LLM, use random(site=pre_llm, ...) or uniform(site=pre_llm, ...)"
            raise PlanError(f"{name} cannot act at site {self.site}; it acts at: {allowed}{hint}")
        if self.role is Role.VISUAL and Role.VISUAL not in method.roles:
            object.__setattr__(self, "role", method.roles[0])
        if self.role not in method.roles:
            raise PlanError(f"{name} does not touch {self.role.name.lower()} tokens")
        if isinstance(method, StepMethod):
            self._check_gate(method)
            return
        fixes_count = isinstance(method, TokenMethod) and method.fixed_count((1, 1, 1)) is not None
        if fixes_count and self.budget is not None:
            raise BudgetError(f"{name} fixes its own count: leave keep out")
        if not fixes_count and self.budget is None:
            raise BudgetError(f"{name} needs keep, e.g. keep=0.5 (what stays)")
        by_picture = self.budget is not None and not self.budget.is_fixed
        by_energy = self.budget is not None and self.budget.energy is not None
        if self.role is not Role.VISUAL and (
            not by_picture or by_energy or self.effect is Effect.MASK or self.scope is not Scope.MEDIUM
        ):
            raise BudgetError(
                f"{name}: how many tokens of a text stay follows from the text: write keep=threshold:0.5, no scope, no effect"
            )
        if by_picture and self.effect is Effect.MASK and (by_energy or method.thresholds):
            raise BudgetError(f"{name}: effect=mask keeps a count; write keep=0.5 or keep=144")
        if self.site.kind is SiteKind.VISION_LAYER and self.budget is not None and (by_energy or self.budget.at_least != 1):
            raise BudgetError(f"{name}: energy and at_least are for stages of the decoder; write keep=0.5 or keep=144")
        if by_picture and not by_energy and not method.thresholds:
            raise BudgetError(f"{name} cannot keep by threshold, its count must be known first: write keep=0.5 or keep=144")
        if method.needs_grid and self.scope is Scope.SAMPLE:
            raise PlanError(f"{name} works on the grid of one medium: scope=sample has no grid")
        if method.needs_grid and self.effect is Effect.MASK:
            raise PlanError(f"{name} merges tokens: effect=mask can only hide them")

    def __str__(self) -> str:
        return stage_text(self)

    __repr__ = __str__

    def __or__(self, other: Any) -> Plan:
        joined: Plan = Plan((self,)) | other
        return joined

    def _check_gate(self, method: StepMethod) -> None:
        name, budget = method.name, self.budget
        if method.takes_keep and (budget is None or budget.ratio is None or budget.at_least != 1):
            raise BudgetError(f"{name} needs the share of the answer that is stored, e.g. keep=0.5")
        if not method.takes_keep and budget is not None:
            raise BudgetError(f"{name} decides by itself how much of an answer it stores: leave keep out")
        if self.scope is not Scope.MEDIUM or self.effect is not Effect.DROP:
            raise PlanError(f"{name} judges each generated token on its own: leave scope and effect out")

    def kept_of(self, available: int, grid: tuple[int, int, int] | None) -> int:
        """How many of a group's `available` tokens stay, from shapes alone. `grid` is the group's grid while it is whole."""
        if self.budget is not None:
            return self.budget.resolve(available)
        assert grid is not None  # a method that fixes its count needs a grid, and the plan was checked for that
        fixed = self.method.fixed_count(grid)
        assert fixed is not None
        return fixed

    def kept_groups(self, groups: Sequence[Sequence[int]], shapes: Sequence[MediumShape]) -> list[list[int]]:
        """Tokens that stay of each group, given those that arrive, already joined to the stage's scope."""
        if self.budget is not None:
            return [[self.kept_of(count, None) for count in own] for own in groups]
        kept = []
        for own, shape in zip(groups, shapes, strict=True):
            if len(own) == len(shape.pieces):
                kept.append([self.kept_of(count, grid) for count, grid in zip(own, shape.pieces, strict=True)])
            else:
                kept.append([sum(self.kept_of(0, grid) for grid in shape.grids)])
        return kept


_Count = TypeVar("_Count", int, Fraction)


def join_groups(groups: Sequence[Sequence[_Count]], shapes: Sequence[MediumShape], scope: Scope) -> list[list[_Count]]:
    """Counts of the groups of one sample, by medium, joined to a wider scope; SAMPLE gives one group in one list."""
    if scope is Scope.SAMPLE:
        return [[sum((count for own in groups for count in own), start=type(groups[0][0])(0))]]
    whole = {Scope.CROP: (), Scope.FRAME: ("image",), Scope.MEDIUM: ("image", "video")}[scope]
    return [
        [sum(own, start=type(own[0])(0))] if shape.kind in whole else list(own)
        for own, shape in zip(groups, shapes, strict=True)
    ]


# More than any model has places for; a longer plan is an error, and reading it would take for ever.
MOST_STAGES = 1_000


@dataclass(frozen=True, repr=False)
class Plan:
    """Stages, ordered by site. An empty plan is the plain model.

    `plan | other` adds the stages of a plan, a stage or a recipe; the text of a plan is what `foveate.parse` reads back.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.stages) > MOST_STAGES:
            raise PlanError(f"{len(self.stages)} stages: a plan has at most {MOST_STAGES}")
        gates = [stage for stage in self.stages if stage.site.kind is SiteKind.DECODE]
        if len(gates) > 1:
            raise PlanError(f"{gates[1].method.name} at {gates[1].site}: a plan has one stage that gates decoding")
        keys = [(_ORDER.index(stage.site.kind), stage.site.layer or 0, int(stage.role)) for stage in self.stages]
        for before, after, stage in zip(keys, keys[1:], self.stages[1:], strict=False):
            if before == after:
                raise PlanError(f"two stages act at {stage.site}: join them or move one")
            if before > after:
                raise PlanError(f"stages must stand in the order in which the model meets them; {stage.site} comes too late")
        for before_stage, stage in zip(self.stages, self.stages[1:], strict=False):
            if stage.method.needs_grid:
                raise PlanError(f"{stage.method.name} needs the whole grid: put it before the stage that drops tokens")
            on_text = Role.VISUAL not in (stage.role, before_stage.role) or stage.role is not before_stage.role
            ranks_apart = before_stage.site.kind is SiteKind.VISION_LAYER or on_text
            if not ranks_apart and _SCOPES.index(stage.scope) < _SCOPES.index(before_stage.scope):
                raise PlanError(
                    f"scope={stage.scope.value} after scope={before_stage.scope.value}: what arrives is uneven by then; "
                    "scopes may only widen, crop -> frame -> medium -> sample"
                )
        if any(s.effect is Effect.MASK for s in self.stages) and len(self.stages) > 1:
            raise PlanError(
                "effect=mask works alone: a masked stage keeps every token, a second stage would not see its choice"
            )

    @classmethod
    def of(cls, plan: Any) -> Plan:
        """A plan from a plan, a stage, a recipe, or several stages.

        Raises:
            SpecError: for anything else.
        """
        if isinstance(plan, Plan):
            return plan
        if isinstance(plan, Stage):
            return cls((plan,))
        plan = getattr(plan, "stages", plan)  # a recipe
        stages = tuple(islice(plan, MOST_STAGES + 1)) if isinstance(plan, Iterable) and not isinstance(plan, str) else (plan,)
        for stage in stages:
            if not isinstance(stage, Stage):
                raise SpecError(f"a plan is a spec string, a Plan, a recipe or Stage objects, not {type(stage).__name__}")
        return cls(stages)

    def __or__(self, other: Any) -> Plan:
        if not (isinstance(other, (Plan, Stage)) or hasattr(other, "stages")):
            return NotImplemented
        return Plan((*self.stages, *Plan.of(other).stages))

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages)) or "none"

    __repr__ = __str__

    @property
    def drops(self) -> bool:
        """Whether any stage shortens the sequence."""
        return any(stage.effect is Effect.DROP for stage in self.stages)

    @property
    def gate(self) -> Stage | None:
        """The stage that decides what decoding stores."""
        return next((stage for stage in self.stages if stage.site.kind is SiteKind.DECODE), None)

    def stored_share(self, layer: int) -> float:
        """The share of an answer's tokens that a decoder layer stores; 1 in front of the stage that gates decoding."""
        gate = self.gate
        if gate is None or layer < (gate.site.layer or 0):
            return 1.0
        assert isinstance(gate.method, StepMethod)
        return gate.method.share(None if gate.budget is None else float(gate.budget.ratio or 0))

    @property
    def encoder_stages(self) -> dict[int, Stage]:
        """The stages inside the vision encoder, by layer."""
        return {stage.site.layer or 0: stage for stage in self.stages if stage.site.kind is SiteKind.VISION_LAYER}

    def leave_encoder(self, tokens: int, unit: int = 1, after: int | None = None) -> int:
        """How many visual tokens of one crop or frame leave the vision encoder, where its grid is the language model's.

        `unit` patches become one visual token; a count counts patches. With `after`, how many leave that layer of it.
        """
        for layer, stage in self.encoder_stages.items():
            if after is not None and layer > after:
                break
            counts = stage.budget is not None and stage.budget.count is not None
            tokens = stage.kept_of(tokens * unit, None) // unit if counts else stage.kept_of(tokens, None)
        return tokens

    def leave_pieces(self, shape: MediumShape) -> list[int]:
        """How many visual tokens of each piece of a medium leave the vision encoder, from shapes alone.

        Where padding is cut away after the encoder, what is left is taken to hold its share of the patches that stay; which
        do is known at run time only. Without padding the count is exact.
        """
        if shape.canvases:
            return [canvas.share(self.leave_encoder(canvas.patches)) for canvas in shape.canvases]
        return [self.leave_encoder(h * w, shape.patches_per_token) for _, h, w in shape.pieces]

    def grid_tokens_per_layer(self, shapes: Sequence[MediumShape], layers: int) -> list[int]:
        """Grid tokens of all media of one sample that enter each of `layers` decoder layers. MASK shortens nothing."""
        alive = [self.leave_pieces(shape) for shape in shapes]
        dropping = [stage for stage in self.stages if stage.effect is Effect.DROP and stage.role is Role.VISUAL]
        by_layer = {stage.site.decoder_layer: stage for stage in dropping}
        counts = []
        for layer in range(layers):
            stage = by_layer.get(layer)
            if stage is not None and alive:
                alive = stage.kept_groups(join_groups(alive, shapes, stage.scope), shapes)
            counts.append(sum(map(sum, alive)))
        return counts
