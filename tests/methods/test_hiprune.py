"""HiPrune against its plain-loop twin."""

from __future__ import annotations

import pytest

from foveate.methods.hiprune import HiPrune
from tests.methods.selecting import KEEPS, kept_of
from tests.oracles.contract import random_view
from tests.oracles.selectors import hiprune_kept


@pytest.mark.parametrize("grid", [(1, 4, 6), (2, 3, 4), (1, 1, 24)])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 0.0])
def test_it_keeps_what_the_twin_keeps(alpha, keep, grid):
    method = HiPrune(alpha)
    view = random_view(method, grid, seed=5)
    middle, last = (view.observe(need).tolist() for need in method.needs())
    coords = [tuple(place) for place in view.coords[0].tolist()]
    expected = [hiprune_kept(middle[group], last[group], coords, keep, alpha) for group in range(3)]
    assert kept_of(method, view, keep) == expected
