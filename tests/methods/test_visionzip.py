"""VisionZip against its plain-loop twin, and its counts as published."""

from __future__ import annotations

import pytest
import torch

from foveate.core.selection import merge_values
from foveate.core.view import EncoderAttention, EncoderKeys
from foveate.methods.visionzip import VisionZip
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import visionzip_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("contextual", [0.15625, 0.5, 0.0])
def test_it_keeps_and_merges_what_the_twin_does(contextual, keep):
    method = VisionZip(contextual)
    view = spoiled_view(method, "random", seed=1)
    selection = method.select(view, keep)
    states = merge_values(view.features, selection)
    attention, keys = (view.observe(need) for need in (EncoderAttention(), EncoderKeys()))
    for group, kept in enumerate(kept_of(method, view, keep)):
        expected = visionzip_kept(view.features[group], attention[group].tolist(), keys[group], keep, contextual)
        assert kept == sorted(expected)
        torch.testing.assert_close(states[group, kept], torch.stack([expected[i] for i in kept]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("keep", "dominant", "contextual"), [(64, 54, 10), (128, 108, 20), (192, 162, 30)])
def test_the_counts_are_the_published_ones(keep, dominant, contextual):
    assert VisionZip().targets(keep) == contextual
    assert keep - VisionZip().targets(keep) == dominant


@pytest.mark.parametrize("kind", SPOILED)
def test_every_count_is_exact_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(VisionZip(), spoiled_view(VisionZip(), kind), keep)
