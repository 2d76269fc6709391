"""Canvases: what a token is made of, and which tokens stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, interpolate

from foveate.core.canvas import Canvas

# Sums of at most four products of fp32 weights.
SUMS = 1e-5

PLAIN = Canvas((2, 3), (4, 4), (1, 2, 6, 8), (6, 8))
SHRUNK = Canvas((2, 3), (4, 4), (1, 2, 6, 8), (5, 6))
HALVED = Canvas((2, 2), (5, 5), (0, 0, 10, 10), (5, 5))
FRAME = Canvas.of_row((9, 9), (5, 5))
AVERAGED = Canvas.of_row((9, 9), (4, 4), stride=2)
CANVASES = (PLAIN, SHRUNK, HALVED, FRAME, AVERAGED)


def laid_out(canvas: Canvas, values: torch.Tensor) -> torch.Tensor:
    """[grid h, grid w] of values [rows, patches], tile by tile."""
    whole = torch.zeros(canvas.tiles[0] * canvas.tile[0], canvas.tiles[1] * canvas.tile[1])
    for number, tile in enumerate(values):
        down, across = divmod(number, canvas.tiles[1])
        top, left = down * canvas.tile[0], across * canvas.tile[1]
        whole[top : top + canvas.tile[0], left : left + canvas.tile[1]] = tile.view(canvas.tile)
    top, left, height, width = canvas.box
    inside = whole[None, None, top : top + height, left : left + width]
    if canvas.stride:
        return avg_pool2d(inside, canvas.stride)[0, 0]
    return interpolate(inside, size=canvas.grid, mode="bilinear")[0, 0]


@pytest.mark.parametrize("canvas", CANVASES)
def test_spread_is_what_models_do_to_features_and_weights_are_its_matrix(canvas):
    values = torch.randn(3, canvas.rows, canvas.patches, generator=torch.Generator().manual_seed(0))
    spread = canvas.spread(values)
    assert spread.shape == (3, canvas.tokens)
    for own, expected in zip(spread, values, strict=True):
        torch.testing.assert_close(own, laid_out(canvas, expected).flatten(), atol=SUMS, rtol=0)
    torch.testing.assert_close(spread, values.flatten(1) @ canvas.weights().to_dense().T, atol=SUMS, rtol=0)
    torch.testing.assert_close(canvas.weights().to_dense().sum(1), torch.ones(canvas.tokens), atol=SUMS, rtol=0)


def test_only_other_sizes_shrink():
    assert [canvas.shrinks for canvas in CANVASES] == [False, True, True, True, True]


@given(st.integers(1, 25), st.integers(0, 1000))
@settings(max_examples=60)
def test_the_best_covered_tokens_stay_up_to_their_share(left, seed):
    order = torch.rand(4, 25, generator=torch.Generator().manual_seed(seed)).argsort(1)
    alive = torch.zeros(4, 25).scatter(1, order[:, :left], 1.0)
    coverage = HALVED.spread(alive)
    stays = HALVED.choose(coverage, left)
    assert HALVED.share(left) == max(1, (2 * left * 25 + 25) // 50)
    assert int(stays.sum()) == min(HALVED.share(left), int((coverage > 0).sum()))
    assert stays.all() or float(coverage[stays].min()) >= float(coverage[~stays].max()) - 1e-4
    unshrunk = Canvas((2, 2), (5, 5), (0, 0, 10, 10), (10, 10))
    assert torch.equal(unshrunk.choose(unshrunk.spread(alive), left), unshrunk.spread(alive) > 0)


def test_of_equally_covered_tokens_some_stay_everywhere():
    canvas = Canvas.of_row((40, 40), (20, 20))
    stays = canvas.choose(torch.full((400,), 0.5), 800).view(20, 20)
    quarters = [part for half in stays.split(10) for part in half.split(10, dim=1)]
    assert all(45 <= int(part.sum()) <= 55 for part in quarters)


@pytest.mark.full
@pytest.mark.parametrize(
    "canvas", [*CANVASES, Canvas((2, 3), (4, 4), (0, 0, 8, 12), (8, 12)), Canvas.of_row((8, 8), (4, 4), 2)]
)
def test_the_number_that_stays_is_known_or_depends_on_which_patches_do(canvas):
    random = torch.Generator().manual_seed(0)
    for left in range(1, canvas.patches + 1):
        found = set()
        for _ in range(30):
            order = torch.rand(canvas.rows, canvas.patches, generator=random).argsort(1)
            alive = torch.zeros(canvas.rows, canvas.patches).scatter(1, order[:, :left], 1.0)
            found.add(int(canvas.choose(canvas.spread(alive), left).sum()))
        assert canvas.left(left) is None or found == {canvas.left(left)}
    known = [canvas.left(left) is not None for left in range(1, canvas.patches)]
    assert all(known) if canvas not in CANVASES else not any(known)
