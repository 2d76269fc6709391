"""The choice of cases among a product of parameters."""

from __future__ import annotations

from itertools import product

import pytest

from tests.covering import TAKEN, covering, pairs_of, shared_out


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


def test_of_a_long_list_families_that_are_no_anchors_take_turns():
    every = [{"family": f, "plan": p, "side": s} for f, p, s in product("abcdefg", range(12), "lr")]
    chosen = [every[number] for number in covering(every, is_due=shared_out(every, ["a"]))]
    plans = {f: {case["plan"] for case in chosen if case["family"] == f} for f in "abcdefg"}
    assert plans["a"] == set(range(12))
    assert all(len(plans[f]) == TAKEN for f in "bcdefg")
    assert set().union(*(plans[family] for family in "bcdefg"[: 12 // TAKEN])) == set(range(12))
    for first, second in (("family", "side"), ("plan", "side")):
        assert {(case[first], case[second]) for case in chosen} == {(case[first], case[second]) for case in every}


def test_a_relative_takes_one_case_and_no_pair_of_the_others_goes_missing():
    every = [{"family": f, "plan": p, "side": s} for f, p, s in product("abc", range(3), "lr")]
    chosen = [every[number] for number in covering(every, is_due=shared_out(every, ["a"], ["c"]))]
    assert len([case for case in chosen if case["family"] == "c"]) == 1
    others = [case for case in every if case["family"] != "c"]
    assert set().union(*map(pairs_of, others)) <= set().union(*map(pairs_of, chosen))
