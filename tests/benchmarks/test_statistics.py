import pytest

from benchmarks._budget import Budget
from benchmarks._statistics import paired_ratio, quartiles, realised


def test_realised_is_the_share_of_the_saving():
    assert realised(0.6, 0.5) == pytest.approx(0.8)  # saved 0.4 of 0.5
    assert realised(0.5, 0.5) == pytest.approx(1.0)
    assert realised(1.1, 0.5) == pytest.approx(-0.2)  # slower than the plain model
    assert realised(0.5, 1.0) is None
    assert realised(0.5, None) is None


def test_quartiles_of_five():
    assert quartiles([5, 1, 4, 2, 3]) == (2, 3, 4)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios():
    # The rounds get slower, their ratios are 0.5, 0.25, 1: medians alone would say 3 / 4.
    found = paired_ratio([2, 4, 8], [1, 1, 8])
    assert found.value == 0.5
    assert found.low == 0.25 and found.high == 1.0


def test_the_interval_is_that_of_all_resamples():
    # Three rounds with ratios 1, 2, 3: of the 27 resamples 7 have the median 1, 13 have 2 and 7 have 3.
    found = paired_ratio([1, 1, 1], [1, 2, 3], resamples=20_000)
    assert (found.low, found.value, found.high) == (1, 2, 3)
    # Nine rounds of which one is an outlier: it takes five or more draws of it to move the median, far below 2.5 %.
    steady = paired_ratio([2.0] * 9, [1.0] * 8 + [50.0])
    assert (steady.low, steady.value, steady.high) == (0.5, 0.5, 0.5)


def test_a_slow_round_counts_once_for_both():
    steady = paired_ratio([10, 100, 10, 1000, 10], [5, 50, 5, 500, 5])
    assert (steady.low, steady.value, steady.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("plain", "plan"), [([1, 2], [1]), ([], []), ([0.0], [1.0])])
def test_times_that_are_no_pairs_are_refused(plain, plan):
    with pytest.raises(ValueError, match="one positive time"):
        paired_ratio(plain, plan)


class Watch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_budget_gives_every_cell_its_least_and_shares_the_rest():
    watch = Watch()
    budget = Budget(100, [1, 2], least=5, most=50, now=watch)
    assert budget.refusal(0) is None  # nothing is known yet
    watch.seconds = 1
    budget.note(1, 1)  # one second for one unit of work
    # 99 s are left: 5 for this cell's least, 12 for the later one (6 rounds of 2 s); half of the other 82 are 41 rounds more.
    assert budget.rounds(0, 1.0) == 46
    watch.seconds = 47
    assert budget.refusal(1) is None
    # 53 s are left, 50 of them for 25 rounds of 2 s, and one fits into the rest.
    assert budget.rounds(1, 2.0) == 26


def test_a_budget_cuts_a_cell_rather_than_its_least_rounds():
    watch = Watch()
    budget = Budget(20, [1, 10], least=5, most=9, now=watch)
    budget.note(1, 1)
    assert budget.rounds(0, 1.0) == 9  # the later cell does not fit anyway
    watch.seconds = 9
    reason = budget.refusal(1)
    assert reason is not None and "5 rounds" in reason and "60 s" in reason and "11 s" in reason


def test_without_a_budget_all_cells_have_all_rounds():
    budget = Budget(None, [1.0], least=5, most=7)
    budget.note(1e9, 1.0)
    assert budget.refusal(0) is None and budget.rounds(0, 1e9) == 7
