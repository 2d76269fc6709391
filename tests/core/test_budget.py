"""Budgets: exact decimals, three roundings, whole groups, and no budget that means nothing."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.budget import Budget, Rounding
from foveate.errors import BudgetError

RATIOS = st.decimals(min_value="0.0001", max_value="1", places=4)


@pytest.mark.parametrize(
    ("ratio", "rounding", "kept"),
    [
        (0.1, Rounding.HALF_UP, 58),  # 57.6
        (0.1, Rounding.CEIL, 58),
        (0.1, Rounding.FLOOR, 57),
        (0.2, Rounding.HALF_UP, 115),  # 115.2
        (0.2, Rounding.CEIL, 116),
        (0.2, Rounding.FLOOR, 115),
        (0.5, Rounding.HALF_UP, 288),
        (1, Rounding.FLOOR, 576),
    ],
)
def test_published_counts_of_576_tokens(ratio, rounding, kept):
    assert Budget.of_ratio(ratio, rounding).resolve(576) == kept


def test_half_a_token_rounds_up():
    assert [Budget.of_ratio(0.5).resolve(n) for n in (1, 3, 5, 7)] == [1, 2, 3, 4]


@given(RATIOS, st.integers(1, 10_000), st.sampled_from(Rounding))
def test_counts_are_those_of_exact_fractions(ratio, available, rounding):
    exact = Fraction(ratio) * available
    wanted = {
        Rounding.FLOOR: math.floor(exact),
        Rounding.CEIL: math.ceil(exact),
        Rounding.HALF_EVEN: round(exact),
        Rounding.HALF_UP: math.floor(exact + Fraction(1, 2)),
    }[rounding]
    assert Budget.of_ratio(ratio, rounding).resolve(available) == min(max(wanted, 1), available)


def test_a_budget_keeps_at_least_one_and_at_most_all():
    assert Budget.of_ratio("0.0001").resolve(10) == 1
    assert Budget.of_ratio("0.01", Rounding.FLOOR).resolve(10) == 1
    assert Budget.of_count(144).resolve(36) == 36


def test_a_decimal_context_of_the_caller_changes_nothing():
    with localcontext() as context:
        context.prec = 2
        assert Budget.of_ratio("0.123456").resolve(1000) == 123
        assert Budget.of_ratio("0.123456").ratio == Decimal("0.123456")


def test_nearly_one_is_not_one():
    assert Budget.of_ratio("0." + "9" * 28, Rounding.FLOOR).resolve(576) == 575


@pytest.mark.parametrize("ratio", [0, 1.5, -1, math.nan, math.inf, -math.inf, "abc", "0." + "1" * 29, "1e-999999"])
def test_a_ratio_that_means_nothing_is_refused(ratio):
    with pytest.raises(BudgetError, match="a ratio"):
        Budget.of_ratio(ratio)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(count):
    with pytest.raises(BudgetError, match=r"at least 1, e\.g\. keep=144"):
        Budget.of_count(count)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, 0.0, 1.0, -0.5])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(BudgetError, match="scores are probabilities"):
        Budget(threshold=threshold)


@pytest.mark.parametrize(
    "fields", [{"ratio": 0.5}, {"ratio": "0.5"}, {"count": 1.5}, {"count": True}, {"count": "9"}, {"threshold": 1}]
)
def test_a_budget_of_another_type_is_refused(fields):
    with pytest.raises(BudgetError, match=r"a ratio is a Decimal|a count is a whole number|a threshold is a float"):
        Budget(**fields)


@pytest.mark.parametrize("digits", [10, 5_000])
def test_a_number_beyond_all_models_is_refused(digits):
    for count in (10**digits, -(10**digits)):
        with pytest.raises(BudgetError, match="a count"):
            Budget.of_count(count)
        with pytest.raises(BudgetError, match="a ratio"):
            Budget.of_ratio(count)


@pytest.mark.parametrize(
    ("available", "ratio", "half_even", "half_up"),
    [(49, "0.5", 24, 25), (361, "0.5", 180, 181), (729, "0.5", 364, 365), (7, "0.5", 4, 4), (10, "0.85", 8, 9)],
)
def test_half_even_rounds_as_python_does(available, ratio, half_even, half_up):
    assert round(available * float(ratio)) == half_even
    assert Budget.of_ratio(ratio, Rounding.HALF_EVEN).resolve(available) == half_even
    assert Budget.of_ratio(ratio).resolve(available) == half_up


@pytest.mark.parametrize("fields", [{}, {"ratio": Decimal("0.5"), "count": 3}, {"count": 3, "threshold": 0.1}])
def test_a_budget_is_exactly_one_of_three(fields):
    with pytest.raises(BudgetError, match="exactly one of"):
        Budget(**fields)


def test_a_threshold_has_no_count_before_the_scores():
    budget = Budget(threshold=0.1)
    assert not budget.is_fixed
    with pytest.raises(BudgetError, match="follows the picture"):
        budget.resolve(10)


def test_equal_ratios_are_equal_budgets_with_one_text():
    assert Budget.of_ratio("0.50") == Budget.of_ratio(0.5)
    assert str(Budget.of_ratio("0.50")) == "0.5"
    assert hash(Budget.of_ratio("0.50")) == hash(Budget.of_ratio(0.5))


@pytest.mark.parametrize(
    ("budget", "text"), [(Budget.of_ratio(1), "100%"), (Budget.of_count(1), "1tok"), (Budget.of_count(144), "144")]
)
def test_the_text_is_never_a_bare_one(budget, text):
    assert str(budget) == text
