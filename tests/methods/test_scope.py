"""SCOPE against its plain-loop twin; the lazy choice against one that computes all gains anew."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from foveate.core.view import EncoderAttention
from foveate.methods.scope import Scope
from foveate.ops.greedy import coverage
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import covering_kept, scope_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.25])
def test_it_keeps_what_the_twin_keeps(alpha, keep):
    method = Scope(alpha)
    view = spoiled_view(method, "random", seed=2)
    attention = view.observe(EncoderAttention()).tolist()
    expected = [scope_kept(features, own, keep, alpha) for features, own in zip(view.features, attention, strict=True)]
    assert kept_of(method, view, keep) == expected


@pytest.mark.parametrize("seed", range(10))
def test_the_lazy_choice_is_the_one_that_looks_at_everything(seed):
    generator = torch.Generator().manual_seed(seed)
    table, weight = torch.rand(2, 30, 17, generator=generator), torch.rand(2, 30, generator=generator)
    lazy = coverage(table, weight, 12)
    with patch("foveate.ops.greedy.waits", return_value=True):
        assert torch.equal(coverage(table, weight, 12), lazy)
    for group in range(2):
        assert sorted(lazy[group].tolist()) == covering_kept(table[group].tolist(), weight[group].tolist(), 12)


@pytest.mark.parametrize("anew", [True, False])
def test_of_equal_candidates_the_earliest_is_chosen_whatever_rounding_says(anew):
    noise = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0)) * 1e-8
    table = torch.eye(12)[None] + noise
    with patch("foveate.ops.greedy.waits", return_value=anew):
        assert coverage(table, torch.ones(1, 12), 5).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("kind", SPOILED)
def test_no_token_is_chosen_twice_whatever_it_is_shown(kind, anew):
    with patch("foveate.ops.greedy.waits", return_value=anew):
        for keep in KEEPS:
            kept_of(Scope(), spoiled_view(Scope(), kind), keep)
