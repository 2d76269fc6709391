"""Choosing per window: equal to plain loops on any grid, window and survivors of an earlier stage."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.core.method import top_indices
from foveate.ops.windows import window_top_indices
from tests.oracles.controls import window_kept


def grid_coords(frames: int, height: int, width: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """Scores with ties [G, N], coords of a whole grid or of survivors [G, N, 3], keep, side."""
    frames, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    everything = grid_coords(frames, height, width)
    groups, generator = 3, torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    alive = draw(st.integers(1, len(everything)))
    order = torch.rand(groups, len(everything), generator=generator).argsort(dim=1)
    coords = everything[order[:, :alive].sort(dim=1).values]
    score = torch.randint(0, 6, (groups, alive), generator=generator).float()
    return score, coords, draw(st.integers(1, alive)), draw(st.integers(1, 5))


@given(cases())
@settings(max_examples=100)
def test_it_keeps_what_plain_loops_keep(case):
    score, coords, keep, side = case
    kept = window_top_indices(score, coords, keep, side)
    assert kept.tolist() == [
        window_kept(own.tolist(), [tuple(point) for point in where.tolist()], keep, side)
        for own, where in zip(score, coords, strict=True)
    ]


@given(cases())
@settings(max_examples=100)
def test_counts_of_two_windows_differ_by_at_most_one_while_both_have_tokens_left(case):
    score, coords, keep, side = case
    kept = window_top_indices(score, coords, keep, side)
    for own, where in zip(kept, coords, strict=True):
        windows = [(t, y // side, x // side) for t, y, x in where.tolist()]
        size, chosen = Counter(windows), Counter(windows[index] for index in own.tolist())
        with_rest = [chosen[window] for window in size if chosen[window] < size[window]]
        if with_rest:
            assert max(chosen.values()) - min(with_rest) <= 1


@given(cases())
@settings(max_examples=50)
def test_one_window_over_everything_is_the_plain_ranking(case):
    score, coords, keep, _ = case
    coords = coords * torch.tensor([0, 1, 1])  # one frame
    assert torch.equal(window_top_indices(score, coords, keep, side=100), top_indices(score, keep))


def test_equal_scores_keep_the_earlier_tokens_of_each_window():
    kept = window_top_indices(torch.zeros(1, 16), grid_coords(1, 4, 4)[None], keep=4, side=2)
    assert kept.tolist() == [[0, 2, 8, 10]]


def test_a_count_that_the_windows_do_not_divide_goes_to_the_best_of_the_next_rank():
    score = torch.tensor([[9.0, 8, 7, 6, 1, 2, 3, 4]])
    coords = grid_coords(1, 1, 8)[None]
    assert window_top_indices(score, coords, keep=3, side=4).tolist() == [[0, 1, 7]]
