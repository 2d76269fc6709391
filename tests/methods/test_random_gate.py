"""The random gate: fair, seeded, the same for one token as for many."""

from __future__ import annotations

import pytest
import torch

from foveate.core.view import StepView
from foveate.errors import SpecError
from foveate.methods.random_gate import RandomGate


def stored(seed: int, keep: float, count: int = 20_000) -> torch.Tensor:
    return RandomGate(seed=seed).gate(StepView(torch.zeros(1, count, 2), torch.arange(count)[None]), keep)[0]


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
def test_the_share_is_what_was_asked_for(seed, keep):
    share = float(stored(seed, keep).float().mean())
    assert abs(share - keep) < 4 * (keep * (1 - keep) / 20_000) ** 0.5


@pytest.mark.parametrize("seed", [0, 3])
def test_neighbours_are_independent(seed):
    chosen = stored(seed, 0.5)
    for gap in (1, 2, 3, 8):
        both = float((chosen[gap:] == chosen[:-gap]).float().mean())
        assert abs(both - 0.5) < 4 * (0.25 / 20_000) ** 0.5


def test_seeds_differ_and_everything_is_everything():
    assert not torch.equal(stored(0, 0.5), stored(1, 0.5))
    assert stored(5, 1.0).all()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_an_impossible_seed_is_refused(seed):
    with pytest.raises(SpecError, match="a seed is a whole number"):
        RandomGate(seed=seed)


@pytest.mark.parametrize("option", [{"recent": -1}, {"first": -1}, {"protect": (-5,)}])
def test_impossible_options_are_refused(option):
    with pytest.raises(SpecError):
        RandomGate(**option)
