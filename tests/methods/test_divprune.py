"""DivPrune against its plain-loop twin."""

from __future__ import annotations

from itertools import pairwise

import pytest

from foveate.methods.divprune import DivPrune
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.contract import random_view
from tests.oracles.selectors import divprune_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", ["random", "huge", "zeros"])
def test_it_keeps_what_the_twin_keeps(kind, keep):
    view = spoiled_view(DivPrune(), kind)
    kept = kept_of(DivPrune(), view, keep)
    assert kept == [divprune_kept(features, keep) for features in view.features]


@pytest.mark.parametrize("kind", SPOILED)
def test_no_token_is_chosen_twice_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(DivPrune(), spoiled_view(DivPrune(), kind), keep)


def test_a_copy_is_kept_after_everything_else():
    view = spoiled_view(DivPrune(), "twins")
    for group in kept_of(DivPrune(), view, 21):
        assert all((i in group) != (i + 3 in group) for i in range(3))


def test_a_smaller_budget_keeps_some_of_what_a_larger_one_keeps():
    view = spoiled_view(DivPrune(), "random")
    kept = [list(map(set, kept_of(DivPrune(), view, keep))) for keep in range(1, 25)]
    assert all(a <= b for small, large in pairwise(kept) for a, b in zip(small, large, strict=True))


def test_of_two_tokens_the_earlier_one_is_kept_whatever_rounding_says():
    for seed in range(20):
        view = random_view(DivPrune(), (1, 1, 2), seed)
        assert kept_of(DivPrune(), view, 1) == [[0]] * 3
