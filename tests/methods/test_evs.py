"""Efficient Video Sampling: a video by hand, then against its plain-loop twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foveate.methods.evs import Evs
from foveate.methods.uniform import Uniform
from tests.methods.selecting import KEEPS, SPOILED, kept_of, left_of, spoiled_view
from tests.oracles.contract import random_view
from tests.oracles.selectors import evs_kept

VIDEO = (4, 2, 3)


def twin(view, keep):
    """What the twin keeps of each group."""
    return [evs_kept(features, own.tolist(), keep) for features, own in zip(view.features, view.coords, strict=True)]


def test_the_first_frame_stays_and_then_what_changed_most():
    view = random_view(Evs(), (3, 1, 3), 0, groups=1)
    right, up = [1.0, 0.0], [0.0, 1.0]
    frames = [[right, right, right], [right, up, [1.0, 1.0]], [right, up, [-1.0, -1.0]]]
    view = replace(view, features=torch.tensor(frames).view(1, 9, 2))
    # Cosines with the frame before: 1, 0, 0.7; then 1, 1, -1.
    assert kept_of(Evs(), view, 3) == [[0, 1, 2]]
    assert kept_of(Evs(), view, 4) == [[0, 1, 2, 8]]
    assert kept_of(Evs(), view, 5) == [[0, 1, 2, 4, 8]]
    assert kept_of(Evs(), view, 6) == [[0, 1, 2, 4, 5, 8]]
    # What did not change is equal: the earlier one stays.
    assert kept_of(Evs(), view, 7) == [[0, 1, 2, 3, 4, 5, 8]]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", SPOILED)
def test_it_keeps_what_the_twin_keeps(kind, keep):
    view = spoiled_view(Evs(), kind, grid=VIDEO)
    assert kept_of(Evs(), view, keep) == twin(view, keep)


@pytest.mark.parametrize("keep", KEEPS)
def test_of_an_image_it_keeps_what_uniform_keeps(keep):
    view = spoiled_view(Evs(), "random")
    assert kept_of(Evs(), view, keep) == kept_of(Uniform(), view, keep) == twin(view, keep)


@pytest.mark.parametrize("keep", [1, 2, 5, 6])
def test_of_a_first_frame_that_is_too_large_evenly_spread_tokens_stay(keep):
    view = random_view(Evs(), VIDEO, 1)
    assert kept_of(Evs(), view, keep) == kept_of(Uniform(), random_view(Uniform(), (1, 2, 3), 1), keep)


def test_behind_another_stage_the_latest_earlier_token_at_the_place_counts():
    view = random_view(Evs(), VIDEO, 2)
    rows = torch.stack(
        [torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:15].sort().values for seed in range(3)]
    )
    left = left_of(view, rows)
    for keep in (1, 4, 8, 12, 15):
        assert kept_of(Evs(), left, keep) == twin(left, keep)


def test_of_a_video_that_stands_still_the_earliest_tokens_stay_whatever_rounding_says():
    for seed in range(20):
        view = random_view(Evs(), (1, 2, 3), seed)
        scale = torch.arange(1, 5).repeat_interleave(6)[:, None] / 3  # a cosine does not see how long a state is
        still = replace(random_view(Evs(), VIDEO, seed), features=view.features.repeat(1, 4, 1) * scale)
        assert kept_of(Evs(), still, 10) == [[*range(10)]] * 3


def test_no_group_sees_another_one_and_places_do_not_mix():
    view = random_view(Evs(), VIDEO, 3)
    expected = kept_of(Evs(), view, 11)
    turned = replace(view, features=view.features.flip(0), coords=view.coords.flip(0), sizes=view.sizes.flip(0))
    assert kept_of(Evs(), turned, 11) == expected[::-1]
    # The same video with its places in another order keeps the same tokens behind its first frame.
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = view.features.view(3, 4, 6, -1)[:, :, order].reshape(view.features.shape)
    for before, after in zip(expected, kept_of(Evs(), replace(view, features=moved), 11), strict=True):
        assert sorted(token // 6 * 6 + int(order[token % 6]) for token in after) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_holds_no_numbers_changed(value):
    view = random_view(Evs(), VIDEO, 4)
    view.features[:, 12:18] = value
    for keep in KEEPS:
        kept_of(Evs(), view, keep)
