"""Random: a fair seeded draw that depends on the seed and the group's key only. It has no twin: the draw is the contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from foveate.errors import SpecError
from foveate.methods.random import Random
from tests.oracles.contract import random_view


def kept(seed: int, keys: tuple[int, ...] = (0,), keep: int = 5) -> list[list[int]]:
    view = random_view(Random(), (1, 4, 4), 0, groups=len(keys))
    return Random(seed).select(replace(view, group_keys=keys), keep).kept.tolist()


def test_seeds_and_groups_draw_different_tokens():
    assert len({tuple(kept(seed)[0]) for seed in range(20)}) > 15
    assert len({tuple(row) for row in kept(0, tuple(range(20)))}) > 15


def test_a_group_draws_by_its_key_wherever_it_stands():
    first, second = kept(3, (7, 1000))
    assert kept(3, (1000, 7)) == [second, first]


def test_features_do_not_matter():
    one, other = random_view(Random(), (1, 4, 4), 0), random_view(Random(), (1, 4, 4), 1)
    assert torch.equal(Random().select(one, 6).kept, Random().select(other, 6).kept)


def test_the_draw_of_a_seed_never_changes():
    # Published numbers name a seed; torch guarantees the CPU stream of a seed across devices.
    assert kept(0) == kept(0)
    assert kept(0)[0] == sorted(torch.rand(16, generator=torch.Generator().manual_seed(0)).topk(5).indices.tolist())


def test_every_token_is_drawn_equally_often():
    draws = 2000
    counts = Counter(index for row in kept(0, tuple(range(draws)), keep=4) for index in row)
    expected = draws * 4 / 16
    assert all(abs(counts[index] - expected) < 5 * expected**0.5 for index in range(16))  # five standard deviations


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(SpecError, match="a seed is a whole number from 0"):
        Random(seed)
