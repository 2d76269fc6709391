"""Pool against its plain-loop twin: means of cells, weighted by what each token stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.selection import merge_values
from foveate.errors import SpecError
from foveate.methods.pool import Pool
from tests.oracles.contract import random_view
from tests.oracles.controls import pool_matrix

# Weights are quotients of small whole numbers in fp32.
WEIGHT = 1e-6
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


@given(GRIDS, st.integers(2, 4))
def test_it_averages_the_cells_of_the_twin(grid, size):
    method = Pool(size)
    view = random_view(method, grid, 0)
    view = replace(view, sizes=torch.ones_like(view.sizes))
    rows = pool_matrix(grid, size)
    assert method.fixed_count(grid) == len(rows)
    selection = method.select(view, len(rows))
    for group in range(view.group_count):
        matrix = selection.matrix(group, view.token_count).to_dense()
        for row, expected in zip(matrix, rows, strict=True):
            assert torch.nonzero(row).flatten().tolist() == sorted(expected)
            assert all(abs(float(row[index]) - weight) < WEIGHT for index, weight in expected.items())
        assert selection.kept[group].tolist() == [min(row) for row in rows]


@given(GRIDS, st.integers(2, 4))
def test_sizes_weigh_the_tokens_and_add_up(grid, size):
    method = Pool(size)
    view = random_view(method, grid, 1)
    keep = method.fixed_count(grid)
    selection = method.select(view, keep)
    assert torch.equal(selection.kept_sizes(view.sizes).sum(dim=1), view.sizes.sum(dim=1))
    merged = merge_values(view.features, selection)
    for row, cell in enumerate(pool_matrix(grid, size)):
        members = list(cell)
        sizes = view.sizes[:, members, None]
        expected = (view.features[:, members] * sizes).sum(dim=1) / sizes.sum(dim=1)
        found = merged[torch.arange(view.group_count), selection.kept[:, row]]
        assert (found - expected).abs().max() < 10 * WEIGHT


def test_a_grid_keeps_a_quarter():
    assert Pool().fixed_count((1, 24, 24)) == 144
    assert Pool().fixed_count((4, 3, 5)) == 4 * 2 * 3


@pytest.mark.parametrize("size", [1, 0, -2])
def test_a_cell_of_one_token_is_no_pooling(size):
    with pytest.raises(SpecError, match="at least 2 tokens wide"):
        Pool(size)
