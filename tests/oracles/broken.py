"""Deliberately broken methods. The contract must reject every one of them; if it does not, the contract is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.method import ScoreMethod, StepMethod, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.view import StepView, TokenView


def _norm(view: TokenView) -> Tensor:
    return view.features.float().norm(dim=-1)


@dataclass(frozen=True)
class Honest(ScoreMethod):
    """Not broken: the control of the controls."""

    def score(self, view: TokenView) -> Tensor:
        return _norm(view)


@dataclass(frozen=True)
class Unsorted(TokenMethod):
    """Returns the best first instead of ascending."""

    def select(self, view: TokenView, keep: int) -> Selection:
        return Selection(_norm(view).topk(keep, dim=1).indices)


@dataclass(frozen=True)
class Repeats(TokenMethod):
    """Returns one token twice."""

    def select(self, view: TokenView, keep: int) -> Selection:
        kept = top_indices(_norm(view), keep)
        kept[:, -1] = kept[:, max(0, keep - 2)]
        return Selection(kept)


@dataclass(frozen=True)
class OffByOne(TokenMethod):
    """Shifts every index by one."""

    def select(self, view: TokenView, keep: int) -> Selection:
        return Selection(top_indices(_norm(view), keep) + 1)


@dataclass(frozen=True)
class TooMany(TokenMethod):
    """Keeps one more than asked."""

    def select(self, view: TokenView, keep: int) -> Selection:
        return Selection(top_indices(_norm(view), min(keep + 1, view.token_count)))


@dataclass(frozen=True)
class Leaks(ScoreMethod):
    """Ranks against the mean of all groups: a row in company is treated unlike a row alone."""

    def score(self, view: TokenView) -> Tensor:
        mean = view.features.float().mean(dim=(0, 1), keepdim=True)
        return (view.features.float() - mean).norm(dim=-1)


@dataclass(frozen=True)
class Writes(ScoreMethod):
    """Writes into its input."""

    def score(self, view: TokenView) -> Tensor:
        view.features.mul_(0.5)
        return _norm(view)


@dataclass(frozen=True)
class Forgets(ScoreMethod):
    """Draws unseeded numbers."""

    def score(self, view: TokenView) -> Tensor:
        return torch.rand(view.features.shape[:2], device=view.features.device)


@dataclass(frozen=True)
class DoubleSource(TokenMethod):
    """Claims a partition, but sends one source to two targets."""

    merges = True

    def select(self, view: TokenView, keep: int) -> Selection:
        kept = torch.arange(keep).expand(view.group_count, -1).contiguous()
        source = torch.full((view.group_count, 2), keep)
        target = torch.tensor([[0, min(1, keep - 1)]]).expand(view.group_count, -1).contiguous()
        weight = torch.full((view.group_count, 2), 0.5)
        return Selection(kept, source, target, weight, torch.ones(kept.shape))


BROKEN = (Unsorted, Repeats, OffByOne, TooMany, Leaks, Writes, Forgets, DoubleSource)


@dataclass(frozen=True)
class BuildsSquare(ScoreMethod):
    """Compares every token with every other one in one table."""

    def score(self, view: TokenView) -> Tensor:
        wide = view.features.float()
        # Element by element, so that a row of a batch is summed as it is alone.
        return (wide[:, :, None, 0] * wide[:, None, :, 0]).amax(dim=1)


WAYS_TO_WAIT: dict[str, Callable[[Tensor], object]] = {
    "item": lambda value: value.item(),
    "tolist": lambda value: value.tolist(),
    "cpu": lambda value: value.cpu(),
    "to": lambda value: value.to("cpu"),
    "float": lambda value: float(value),
    "branch": lambda value: 1 if value > 0 else 0,
    "nonzero": lambda value: value.nonzero(),
    "mask": lambda value: value[value > 0],
    "unique": lambda value: value.unique(),
}


@dataclass(frozen=True)
class Waits(ScoreMethod):
    """Reads a value of every token, each time from the device."""

    how: str = "item"

    def score(self, view: TokenView) -> Tensor:
        norm = _norm(view)
        for token in range(view.token_count):
            WAYS_TO_WAIT[self.how](norm[0, token])
        return norm


@dataclass(frozen=True)
class Hoards(ScoreMethod):
    """Makes no table of all pairs, but keeps each of its rows until the last one is there."""

    def score(self, view: TokenView) -> Tensor:
        wide = view.features.float()[..., 0]
        rows = [wide * wide[:, token, None] for token in range(view.token_count)]
        return torch.stack([row.amax(dim=1) for row in rows], dim=1)


# What the contract measures, and no single answer shows.
COSTLY = {
    BuildsSquare: "an entry for every two tokens",
    Waits: "waits for the device",
    Hoards: "bytes at once where .* are enough .*pairs_at_once",
}


@dataclass(frozen=True)
class HonestGate(StepMethod):
    """Not broken."""

    takes_keep = False

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        return view.features.float().sum(-1) > 0


@dataclass(frozen=True)
class LeakingGate(HonestGate):
    """Judges a token by the others of its answer."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        score = view.features.float().sum(-1)
        return score >= score.mean(1, keepdim=True)


@dataclass(frozen=True)
class CompanyGate(HonestGate):
    """Judges a token by its row of the batch."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        return (view.number + torch.arange(len(view.number))[:, None]) % 2 == 0


@dataclass(frozen=True)
class WritingGate(HonestGate):
    """Writes into what it was shown."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        view.features.mul_(2)
        return view.features.float().sum(-1) > 0


@dataclass(frozen=True)
class RestlessGate(HonestGate):
    """Draws anew at each call."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        return torch.rand(view.number.shape) < 0.5


@dataclass(frozen=True)
class ScoringGate(HonestGate):
    """Returns a score instead of a decision."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        return view.features.float().sum(-1)


@dataclass(frozen=True)
class SquareGate(HonestGate):
    """Compares every two tokens, and uses none of it."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        score = view.features.float().sum(-1)
        return (score > 0) & (score[:, :, None] == score[:, None]).any(-1)


@dataclass(frozen=True)
class WaitingGate(HonestGate):
    """Asks the device at every step."""

    def gate(self, view: StepView, keep: float | None) -> Tensor:
        score = view.features.float().sum(-1)
        return score > 0 if bool((score > 0).any()) else score > 1e9


BROKEN_GATES = {
    LeakingGate: "alone is treated unlike in company",
    CompanyGate: "alone is treated unlike in company",
    WritingGate: "wrote into features",
    RestlessGate: "two calls with equal inputs differ",
    ScoringGate: "must return",
    SquareGate: "an entry for every two tokens",
    WaitingGate: "waits for the device",
}
