"""The choice of cases among a product of parameters."""

from __future__ import annotations

from itertools import product

import pytest

from tests.covering import covering, pairs_of


def cases(*sizes: int) -> list[dict[str, int]]:
    return [dict(zip("abcdef", values, strict=False)) for values in product(*(range(size) for size in sizes))]


@pytest.mark.parametrize(("sizes", "most"), [((3, 2, 2), 6), ((24, 12, 2, 2), 300), ((3, 12, 2, 2, 2, 2), 40), ((5,), 5)])
def test_every_two_values_meet_in_few_cases(sizes, most):
    every = cases(*sizes)
    chosen = covering(every)
    assert set().union(*(pairs_of(every[number]) for number in chosen)) == set().union(*map(pairs_of, every))
    assert len(chosen) <= most
    assert chosen == covering(every), "every worker chooses the same"


def test_what_cannot_meet_is_not_asked_for_and_what_runs_already_counts():
    every = [case for case in cases(3, 3, 2) if case["a"] != case["b"]]
    begun = covering([case for case in every if case["a"] < 2])
    start = [every.index([case for case in every if case["a"] < 2][number]) for number in begun]
    chosen = covering(every, start)
    assert set(start) <= set(chosen)
    assert set().union(*(pairs_of(every[number]) for number in chosen)) == set().union(*map(pairs_of, every))


def test_a_list_without_a_product_stays_whole():
    assert covering([{"given": n, "says": -n} for n in range(7)]) == list(range(7))
    assert covering([]) == []
