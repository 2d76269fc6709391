"""Partition against its plain-loop twin."""

from __future__ import annotations

import pytest
import torch

from foveate import methods
from tests.methods.test_merging import importance, result
from tests.oracles.contract import random_view
from tests.oracles.merging import partition_kept

TOLERANCE = 1e-5  # fp32, sums in another order


def agrees(kept, states, expected):
    assert kept == sorted(expected)
    torch.testing.assert_close(states, torch.stack([expected[j] for j in kept]).float(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("keep", [1, 7, 23, 24])
def test_every_removed_token_joins_the_survivor_most_like_it(keep):
    view = random_view(methods.get("partition")(), (1, 4, 6), seed=3)
    kept, states = result("partition", view, keep)
    for group in range(view.group_count):
        score = importance("partition", view, group)
        agrees(kept[group], states[group], partition_kept(view.features[group], score, view.sizes[group], keep))
