"""The soft top-k: its count, its limit, its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.ops.soft_top_k import soft_top_k


def scores(groups: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(groups, count, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.floats(0.01, 1), st.floats(1e-3, 10), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_every_group_is_kept_as_often_as_was_asked_for(count, share, temperature, scale, seed):
    keep = max(share * count, 1e-3)
    kept = soft_top_k(scores(3, count, seed) * scale, keep, temperature)
    assert bool(((kept >= 0) & (kept <= 1)).all())
    torch.testing.assert_close(kept.sum(1), torch.full((3,), keep, dtype=torch.double), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("keep", [1, 2.5, 6, 11])
def test_its_gradient_is_that_of_differences(keep, temperature):
    given = scores(2, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda score: soft_top_k(score, keep, temperature), (given,))


def test_its_gradient_is_that_of_the_equation_it_solves():
    """dm_i/ds_j = w_i ([i = j] - w_j / sum(w)) / T with w = m (1 - m)."""
    score, temperature = scores(1, 7), 0.3
    kept = soft_top_k(score, 3, temperature)[0]
    slope = kept * (1 - kept)
    expected = (torch.diag(slope) - slope[:, None] * slope / slope.sum()) / temperature
    found = torch.autograd.functional.jacobian(lambda one: soft_top_k(one[None], 3, temperature)[0], score[0])
    torch.testing.assert_close(found, expected)


def test_it_hardens_to_the_largest_scores_and_a_shift_changes_nothing():
    score = scores(4, 20)
    best = torch.zeros_like(score).scatter(1, score.topk(6, dim=1).indices, 1.0)
    torch.testing.assert_close(soft_top_k(score, 6, 1e-4), best, atol=1e-6, rtol=0)
    torch.testing.assert_close(soft_top_k(score + 50, 6, 0.5), soft_top_k(score, 6, 0.5))


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_finite_where_every_decision_is_made(dtype, temperature):
    score = (scores(3, 30) * 100).to(dtype).requires_grad_()
    kept = soft_top_k(score, 9, temperature)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept.sum(1), torch.full((3,), 9.0), atol=1e-3, rtol=0)
    (kept * torch.arange(30)).sum().backward()
    assert bool(score.grad.isfinite().all())


def test_a_group_alone_is_kept_as_in_company_and_everything_is_kept_whole():
    score = scores(5, 16)
    together = soft_top_k(score, 4, 0.2)
    assert all(torch.equal(soft_top_k(score[group, None], 4, 0.2)[0], together[group]) for group in range(5))
    assert torch.equal(soft_top_k(score, 16, 0.2), torch.ones_like(score))


@pytest.mark.parametrize(("keep", "temperature"), [(0, 1.0), (5, 1.0), (2, 0.0), (2, float("nan"))])
def test_what_cannot_be_kept_is_refused(keep, temperature):
    with pytest.raises(ValueError, match="soft_top_k"):
        soft_top_k(scores(1, 4), keep, temperature)
