"""What a method is: a frozen, seeded, stateless answer to "which tokens stay"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from foveate.core.layout import Role
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.text import Written
from foveate.core.view import Observation, StepView, TokenView
from foveate.errors import SpecError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

    from foveate.core.budget import Budget
    from foveate.core.plan import Stage


@dataclass(frozen=True)
class Method(Written):
    """Base of all methods. Fields are the method's options; `keep`, `layer`, `site`, `scope` belong to the stage (see `at`).

    Class attributes:
        sites: the kinds of site the method can act at.
        roles: the roles of the tokens it may touch.
        paper: where it comes from, as shown by `foveate methods`.
        published: how good it is, by whom, on which model; "" where no comparison is known.
        needs_grid: whether it only works on a whole grid in raster order.
        reads_features: whether it looks at hidden states, which cached tokens no longer have.
        merges: whether tokens that it removes may flow into others.
        sums: whether what flows into a token is added to it, so that its state may grow; else it becomes a weighted mean.
        thresholds: whether its scores are probabilities of staying, so that a budget can be a threshold.
    """

    sites: ClassVar[tuple[SiteKind, ...]] = ()
    roles: ClassVar[tuple[Role, ...]] = (Role.VISUAL,)
    paper: ClassVar[str] = ""
    published: ClassVar[str] = ""
    needs_grid: ClassVar[bool] = False
    reads_features: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    thresholds: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name in specs, JSON and on the command line: the name of the file that defines the method."""
        return type(self).__module__.rpartition(".")[2]

    def at(
        self,
        layer: int | None = None,
        keep: float | str | Budget | None = None,
        *,
        site: str | None = None,
        point: str = "before",
        scope: str = "medium",
        role: str | None = None,
        effect: str = "drop",
        rounding: str = "half_up",
        at_least: int = 1,
    ) -> Stage:
        """This method at a place of the model, with a budget: `FastV(query="text").at(layer=2, keep=0.5)`.

        Args:
            layer: before which layer the tokens are gone, counted from 0: of the decoder, or of the encoder with
                `site="vision"`.
            keep: what stays: a share such as 0.5, a count such as 144, or a text as in specs: "50%", "1tok",
                "energy:0.9", "threshold:0.5". None for a method that fixes its own count.
            site: "vision", "pre_llm", "llm" or "decode"; None for the place that `layer` alone means.
            point, scope, role, effect, rounding, at_least: as in specs.

        Raises:
            SpecError, BudgetError, PlanError: one line that says what was given and what to write.
        """
        from foveate.core.placing import place

        return place(self, layer, keep, site, point, scope, role, effect, rounding, at_least)

    def needs(self) -> tuple[Observation, ...]:
        """What the engine must measure for this method."""
        return ()

    @property
    def weighs_sizes(self) -> bool:
        """Whether attention after the stage counts a token as often as there are original tokens in it."""
        return False

    def fixed_count(self, grid: tuple[int, int, int]) -> int | None:
        """How many tokens of a grid stay if the method itself fixes that; None if the stage's budget does."""
        return None

    def pairs_at_once(self, tokens: int) -> int:
        """How many pairs of a group's `tokens` tokens it compares at once, at most; 0 for a method that compares none.

        What a method holds grows with the tokens and with these pairs, and the tests measure that it grows with nothing else.
        """
        return 0

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        """Itself with options that together use every one: all tests of all methods run on these, the first one most.

        Without another word: as its defaults have it, and with each switch turned over.
        """
        plain = cls()
        switches = {field.name: field.default for field in fields(plain) if isinstance(field.default, bool)}
        return (plain, *(replace(plain, **{name: not on}) for name, on in switches.items()))


@dataclass(frozen=True)
class TokenMethod(Method, ABC):
    """Chooses among equal-length groups of tokens."""

    sites: ClassVar[tuple[SiteKind, ...]] = (SiteKind.PRE_LLM, SiteKind.LLM_LAYER)

    @abstractmethod
    def select(self, view: TokenView, keep: int) -> Selection:
        """Choose `keep` of the N tokens of each group. Groups never influence each other; inputs are never written."""


@dataclass(frozen=True)
class ScoreMethod(TokenMethod):
    """Keeps the tokens with the highest scores: the common case."""

    def turn_ids(self) -> tuple[int, ...]:
        """Of a method on the instruction: token ids with which a user's turn begins; () where it knows none."""
        return ()

    @abstractmethod
    def score(self, view: TokenView) -> Tensor:
        """Return [G, N], larger = keep."""

    def choose(self, score: Tensor, view: TokenView, keep: int) -> Tensor:
        """Indices [G, keep], ascending, given the scores [G, N]: the largest ones, unless a method spreads them."""
        return top_indices(score, keep)

    def select(self, view: TokenView, keep: int) -> Selection:
        return Selection(self.choose(self.score(view), view, keep))


@dataclass(frozen=True)
class StepMethod(Method, ABC):
    """Decides for each generated token whether the layers after the stage store its keys and values.

    A token attends to itself in any case. A token that is not stored is seen by no later one (Dynamic-LLaVA,
    arXiv 2412.00876, Eq. 6).

    Attributes:
        recent: the last so many tokens are visible whatever was decided, counted with the one that asks, which always sees
            itself: 0 and 1 are the bare gate. A language model that loses its last words is lost itself, so that a gate has
            a window unless it was trained without one.
        first: the first so many tokens of an answer are always stored.
        protect: token ids that are always stored.
    """

    recent: int = 32
    first: int = 0
    protect: tuple[int, ...] = ()

    sites: ClassVar[tuple[SiteKind, ...]] = (SiteKind.DECODE,)
    roles: ClassVar[tuple[Role, ...]] = (Role.OUTPUT,)
    takes_keep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.recent < 0:
            raise SpecError(f"{self.name}(recent={self.recent}): write how many of the last tokens are always seen, 0 for none")
        if self.first < 0 or any(token < 0 for token in self.protect):
            raise SpecError(f"{self.name}: first and protect are never negative")

    def share(self, keep: float | None) -> float:
        """The share of an answer that is stored, as far as it is known before the answer."""
        assert keep is not None
        return keep

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        """Bare first: a window longer than the tests' answers would hide what the gate decides."""
        bare = [replace(one, recent=0) for one in super().examples() if isinstance(one, cls)]
        return (*bare, cls(recent=3, first=2, protect=(5, 7)), cls(recent=32))

    @abstractmethod
    def gate(self, view: StepView, keep: float | None) -> Tensor:
        """Return [B, n] bool, True = store. Tokens never influence each other; inputs are never written.

        `keep` is the share that the stage's budget asks for, None for a method that decides the share itself.
        """


def top_indices(score: Tensor, keep: int) -> Tensor:
    """Indices [G, keep] of the largest scores [G, N], ascending; of equal scores the earlier token wins."""
    import torch

    order = torch.argsort(score, dim=1, descending=True, stable=True)
    return order[:, :keep].sort(dim=1).values
