"""SparseVLM against its plain-loop twin, and its counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foveate.core.selection import merge_values
from foveate.core.view import AttentionRows
from foveate.errors import SpecError
from foveate.methods.sparsevlm import SparseVLM
from foveate.ops.clustering import density_peaks
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.contract import random_view
from tests.oracles.selectors import density_clusters, sparsevlm_kept

ROWS = AttentionRows("matched")


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("recycle", [0.3, 1.0, 0.0])
@pytest.mark.parametrize("kind", SPOILED)
def test_it_keeps_and_merges_what_the_twin_does(kind, recycle, keep):
    method = SparseVLM(recycle)
    view = spoiled_view(method, kind, seed=2)
    states = merge_values(view.features, method.select(view, keep))
    attention = view.observe(ROWS).mean(1)
    scale = float(view.features.abs().max()) or 1.0
    for group, kept in enumerate(kept_of(method, view, keep)):
        expected = sparsevlm_kept(view.features[group], attention[group].tolist(), keep, recycle)
        assert kept == sorted(expected)
        own = torch.stack([expected[i] for i in kept]).float()
        torch.testing.assert_close(states[group, kept] / scale, own / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("count", "keep", "sources", "clusters"),
    [
        (576, 300, 86, 9),
        (300, 200, 32, 4),
        (200, 110, 28, 3),
        (576, 66, 158, 16),
        (30, 17, 5, 1),
        (24, 1, 7, 0),
        (9, 9, 0, 0),
    ],
)
def test_recycled_tokens_are_part_of_the_budget(count, keep, sources, clusters):
    assert SparseVLM().recycled(count, keep) == (sources, clusters)
    if clusters:
        rejected = count - (keep - clusters)
        assert (int(rejected * 0.3) + 1, (int(rejected * 0.3) + 1) // 10 + 1) == (sources, clusters)


def test_every_budget_of_every_count_is_met():
    for count in range(1, 70):
        for keep in range(1, count + 1):
            sources, clusters = SparseVLM().recycled(count, keep)
            assert 0 <= clusters < keep
            assert clusters <= sources <= count - keep + clusters


def test_what_is_no_number_costs_no_token():
    for name in ("features", "attention"):
        for keep in KEEPS:
            view = random_view(SparseVLM(), (1, 4, 6), 0)
            if name == "features":
                view.features[:, ::3] = torch.nan
            else:
                view = replace(view, observed={ROWS: view.observe(ROWS).index_fill(2, torch.arange(0, 24, 3), torch.nan)})
            kept_of(SparseVLM(), view, keep)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_clusters_of_many_points_are_found_in_pieces(count):
    points = torch.randn(2, 150, 6, generator=torch.Generator().manual_seed(count))
    centres, hosts = density_peaks(points, count)
    for group in range(2):
        members = density_clusters(points[group], count)
        assert centres[group].tolist() == sorted(members)
        assert hosts[group].tolist() == [next(n for n, c in enumerate(sorted(members)) if i in members[c]) for i in range(150)]


def test_equal_points_are_one_cluster_whose_centre_is_the_first():
    points = torch.tensor([[0.3, -0.7, 1.1], [5.0, 0.1, 0.2], [0.3, -0.7, 1.1], [5.0, 0.1, 0.2], [0.3, -0.7, 1.1]])[None] + 100
    centres, hosts = density_peaks(points, 2)
    assert centres.tolist() == [[0, 1]]
    assert hosts.tolist() == [[0, 1, 0, 1, 0]]


@pytest.mark.parametrize("recycle", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(recycle):
    with pytest.raises(SpecError, match="a share from 0 to 1"):
        SparseVLM(recycle)
