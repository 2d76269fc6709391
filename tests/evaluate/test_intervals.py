"""Means with intervals: paired differences cancel what the samples share."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.errors import InputError
from foveate.evaluate.intervals import difference, mean_of


def test_an_interval_holds_its_mean_and_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = mean_of(values.tolist())
    assert mean.value == pytest.approx(values.mean())
    assert mean.low < mean.value < mean.high
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert mean.to_json() == {"mean": mean.value, "low": mean.low, "high": mean.high}


def test_a_paired_difference_is_as_narrow_as_the_differences():
    random = np.random.default_rng(1)
    plain = random.normal(10, 5, 200)
    plan = plain + random.normal(0.3, 0.1, 200)
    found = difference(plain.tolist(), plan.tolist())
    assert 0.27 < found.low < found.value < found.high < 0.33
    assert found.value == pytest.approx((plan - plain).mean())
    same = difference([1.0, 2.0], [1.0, 2.0])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_one_sample_has_no_interval_and_none_no_mean():
    assert mean_of([2.0]).to_json() == {"mean": 2.0, "low": None, "high": None}
    with pytest.raises(InputError, match="no samples"):
        mean_of([])
    with pytest.raises(InputError, match="1 and 2 numbers"):
        difference([1.0], [1.0, 2.0])
