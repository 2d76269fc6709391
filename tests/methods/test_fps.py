"""Farthest point sampling against its plain-loop twin."""

from __future__ import annotations

import pytest

from foveate.methods.fps import Fps
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.contract import random_view
from tests.oracles.selectors import fps_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", ["random", "huge", "tiny"])
def test_it_keeps_what_the_twin_keeps(kind, keep):
    view = spoiled_view(Fps(), kind)
    assert kept_of(Fps(), view, keep) == [fps_kept(features, keep) for features in view.features]


@pytest.mark.parametrize("kind", SPOILED)
def test_no_token_is_chosen_twice_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(Fps(), spoiled_view(Fps(), kind), keep)


def test_of_two_tokens_the_earlier_one_is_kept_whatever_rounding_says():
    for seed in range(20):
        view = random_view(Fps(), (1, 1, 2), seed)
        assert kept_of(Fps(), view, 1) == [[0]] * 3
