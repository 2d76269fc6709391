"""VidCom2 against its plain-loop twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foveate.methods.vidcom2 import VidCom2
from tests.methods.selecting import KEEPS, SPOILED, kept_of, left_of, spoiled_view
from tests.oracles.contract import random_view
from tests.oracles.selectors import vidcom2_kept

VIDEO = (4, 2, 3)


def twin(view, keep):
    """What the twin keeps of each group."""
    return [vidcom2_kept(features, own.tolist(), keep) for features, own in zip(view.features, view.coords, strict=True)]


def per_frame(kept, frames=4):
    """How many tokens of each frame of six stay."""
    return torch.bincount(torch.tensor(kept) // 6, minlength=frames).tolist()


@pytest.mark.parametrize("keep", [1, 2, 3, 4, *KEEPS])
@pytest.mark.parametrize("kind", SPOILED)
def test_it_keeps_what_the_twin_keeps(kind, keep):
    view = spoiled_view(VidCom2(), kind, grid=VIDEO)
    assert kept_of(VidCom2(), view, keep) == twin(view, keep)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("seed", range(4))
def test_a_frame_like_no_other_one_keeps_more(seed, keep):
    view = random_view(VidCom2(), VIDEO, seed)
    features = view.features * 0.1 + 1
    features[:, 12:18] -= 2
    view = replace(view, features=features)
    kept = kept_of(VidCom2(), view, keep)
    assert kept == twin(view, keep)
    for own in kept:
        counts = per_frame(own)
        assert counts[2] == max(counts)


def test_a_frame_that_can_keep_no_more_gives_its_share_to_the_others():
    view = random_view(VidCom2(), VIDEO, 5)
    features = view.features * 0.1 + 1
    features[:, :6] -= 2
    for own in kept_of(VidCom2(), replace(view, features=features), 20):
        counts = per_frame(own)
        assert counts[0] == 6 and sorted(counts[1:]) == [4, 5, 5]


def test_frames_that_are_alike_share_evenly_and_the_earlier_ones_get_the_rest():
    for seed in range(20):
        frame = random_view(VidCom2(), (1, 2, 3), seed)
        view = replace(random_view(VidCom2(), VIDEO, seed), features=frame.features.repeat(1, 4, 1))
        for keep, expected in ((4, [1, 1, 1, 1]), (8, [2, 2, 2, 2]), (10, [3, 3, 2, 2]), (23, [6, 6, 6, 5])):
            kept = kept_of(VidCom2(), view, keep)
            assert [per_frame(own) for own in kept] == [expected] * 3
            assert kept == twin(view, keep)


def test_every_frame_keeps_a_token_as_far_as_they_reach():
    view = random_view(VidCom2(), (12, 1, 2), 6)
    features = view.features * 0.1 + 1
    features[:, :2] -= 2
    view = replace(view, features=features)
    for keep in (1, 5, 12, 13, 14, 20):
        kept = kept_of(VidCom2(), view, keep)
        assert kept == twin(view, keep)
        for own in kept:
            assert len({token // 2 for token in own}) == min(keep, 12)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", SPOILED)
def test_an_image_is_one_frame(kind, keep):
    view = spoiled_view(VidCom2(), kind)
    assert kept_of(VidCom2(), view, keep) == twin(view, keep)


def test_behind_another_stage_frames_may_have_unequal_numbers_of_tokens():
    view = random_view(VidCom2(), VIDEO, 2)
    rows = torch.rand(3, 24, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :15].sort(1).values
    left = left_of(view, rows)
    for keep in (1, 4, 8, 12, 15):
        assert kept_of(VidCom2(), left, keep) == twin(left, keep)


def test_no_group_sees_another_one():
    view = random_view(VidCom2(), VIDEO, 3)
    turned = replace(view, features=view.features.flip(0), coords=view.coords.flip(0), sizes=view.sizes.flip(0))
    assert kept_of(VidCom2(), turned, 11) == kept_of(VidCom2(), view, 11)[::-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_holds_no_numbers_costs_no_token_of_the_count(value):
    view = random_view(VidCom2(), VIDEO, 4)
    view.features[:, 12:18] = value
    for keep in KEEPS:
        kept_of(VidCom2(), view, keep)
