"""Pool3d against its plain-loop twin: means of cells over time and space, weighted by what each token stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.selection import merge_values
from foveate.errors import SpecError
from foveate.methods.pool import Pool
from foveate.methods.pool3d import Pool3d
from tests.methods.selecting import SPOILED
from tests.oracles.contract import random_view
from tests.oracles.controls import pool3d_matrix

# Weights are quotients of small whole numbers in fp32.
WEIGHT = 1e-6
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
CELLS = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda cell: cell != (1, 1))


def pooled(method, view):
    """The states [G, K, D] of what stays."""
    selection = method.select(view, method.fixed_count(view.grid))
    merged = merge_values(view.features, selection)
    return merged.gather(1, selection.kept[..., None].expand(-1, -1, merged.shape[2]))


@given(GRIDS, CELLS)
def test_it_averages_the_cells_of_the_twin(grid, cell):
    method = Pool3d(*cell)
    view = random_view(method, grid, 0)
    rows = pool3d_matrix(grid, *cell)
    assert method.fixed_count(grid) == len(rows)
    selection = method.select(view, len(rows))
    selection.check_shapes(view.group_count, view.token_count, len(rows))
    selection.check_values(view.token_count)
    assert torch.equal(selection.kept_sizes(view.sizes).sum(1), view.sizes.sum(1))
    assert selection.kept.tolist() == [[min(row) for row in rows]] * view.group_count
    found = pooled(method, view)
    for number, row in enumerate(rows):
        members = list(row)
        sizes = view.sizes[:, members, None].double()
        expected = (view.features[:, members].double() * sizes).sum(1) / sizes.sum(1)
        assert (found[:, number] - expected).abs().max() < 10 * WEIGHT
    even = method.select(replace(view, sizes=torch.ones_like(view.sizes)), len(rows)).matrix(0, view.token_count).to_dense()
    for found_row, row in zip(even, rows, strict=True):
        assert torch.nonzero(found_row).flatten().tolist() == sorted(row)
        assert all(abs(float(found_row[index]) - weight) < WEIGHT for index, weight in row.items())


@given(GRIDS, st.integers(2, 4))
def test_within_one_frame_it_is_pool(grid, size):
    view = random_view(Pool(), grid, 1)
    assert torch.allclose(pooled(Pool3d(time=1, size=size), view), pooled(Pool(size), view), atol=WEIGHT, rtol=0)


def test_the_papers_counts():
    assert Pool3d(time=1, size=2).fixed_count((16, 24, 24)) == 16 * 12 * 12
    assert Pool3d(time=4, size=1).fixed_count((16, 24, 24)) == 4 * 24 * 24
    assert Pool3d().fixed_count((3, 3, 5)) == 2 * 2 * 3
    assert Pool3d(time=10**15, size=10**15).fixed_count((3, 3, 5)) == 1


def test_of_a_video_that_stands_still_every_frame_says_what_the_average_says():
    view = random_view(Pool3d(), (4, 2, 3), 2)
    frame = view.features[:, :6]
    still = replace(view, features=frame.repeat(1, 4, 1))
    assert torch.allclose(pooled(Pool3d(time=4, size=1), still), frame, atol=WEIGHT, rtol=0)


def test_time_is_counted_from_the_first_frame_of_the_grid():
    """A later part of a medium has the times that follow those of the earlier ones."""
    view = random_view(Pool3d(), (3, 2, 2), 3)
    later = replace(view, coords=view.coords + torch.tensor([1, 0, 0]))
    assert torch.equal(pooled(Pool3d(), later), pooled(Pool3d(), view))


@pytest.mark.parametrize("kind", SPOILED)
def test_a_copy_of_a_group_is_pooled_as_the_group_is(kind):
    view = random_view(Pool3d(), (2, 3, 4), 4)
    view = replace(view, features=SPOILED[kind](view.features))
    turned = replace(view, features=view.features.flip(0), sizes=view.sizes.flip(0))
    assert torch.equal(pooled(Pool3d(), turned), pooled(Pool3d(), view).flip(0))
    assert pooled(Pool3d(), view).isfinite().all()


def test_what_is_no_number_stays_within_its_cell():
    view = random_view(Pool3d(), (2, 2, 4), 5)
    view.features[1, 0] = float("nan")
    assert pooled(Pool3d(), view).isnan().any(2).tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("options", [(1, 1), (0, 2), (2, 0), (-1, 3)])
def test_a_cell_of_one_token_is_no_pooling(options):
    with pytest.raises(SpecError, match="one of them at least 2"):
        Pool3d(*options)
