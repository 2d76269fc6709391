"""Uniform against its plain-loop twin."""

from __future__ import annotations

import itertools
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from foveate.methods.uniform import Uniform
from tests.oracles.contract import random_view
from tests.oracles.controls import uniform_kept


def kept(count: int, keep: int) -> list[int]:
    view = random_view(Uniform(), (1, 1, count), 0, groups=2)
    first, second = Uniform().select(view, keep).kept.tolist()
    assert first == second
    return first


@given(st.integers(1, 600), st.data())
def test_it_keeps_what_the_twin_keeps(count, data):
    keep = data.draw(st.integers(1, count))
    assert kept(count, keep) == uniform_kept(count, keep)


@given(st.integers(1, 600), st.data())
def test_gaps_differ_by_at_most_one(count, data):
    keep = data.draw(st.integers(1, count))
    chosen = kept(count, keep)
    gaps = {after - before for before, after in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs(Fraction(sum(chosen), keep) - Fraction(count, 2)) <= 1  # centred


def test_a_quarter_of_sixteen():
    assert kept(16, 4) == [2, 6, 10, 14]
