"""Counts by spectrum against numpy's singular values in fp64, and on input that has no spectrum."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.ops.energy import energy_counts


def by_singular_values(states: np.ndarray, share: float) -> int:
    """Twin: values are added one by one until they hold enough."""
    squares = np.linalg.svd(states.astype(np.float64), compute_uv=False) ** 2
    held, count = 0.0, 0
    while held < share * squares.sum() * (1 - 1e-9):
        held, count = held + squares[count], count + 1
    return max(count, 1)


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.3, 0.5, 0.77, 0.9, 0.99]))
def test_counts_are_those_of_the_twin(seed, tokens, width, share):
    random = np.random.default_rng(seed)
    states = random.normal(size=(3, tokens, width)) * random.uniform(0.1, 3, size=(3, 1, width))
    found = energy_counts(torch.tensor(states, dtype=torch.float32), share).tolist()
    assert found == [by_singular_values(one, share) for one in states]


def test_copies_need_one_token_and_orthogonal_ones_need_their_share():
    copies, apart = torch.ones(8, 5), torch.eye(8, 5)
    assert energy_counts(torch.stack([copies, apart]), 0.79).tolist() == [1, 4]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_size_does_not_matter(scale):
    states = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    assert energy_counts(states * scale, 0.8).tolist() == energy_counts(states, 0.8).tolist()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_group_without_a_spectrum_has_one_and_changes_no_other(value):
    states = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = energy_counts(states, 0.9).tolist()
    states[1] = value
    assert energy_counts(states, 0.9).tolist() == [expected[0], 1, expected[2]]
