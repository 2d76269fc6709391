"""iLLaVA v2 against its plain-loop twin."""

from __future__ import annotations

import pytest
import torch

from foveate import methods
from foveate.errors import SpecError
from tests.methods.test_merging import importance, result
from tests.oracles.contract import random_view
from tests.oracles.merging import illava_v2_dropped, illava_v2_kept, illava_v2_shifted

TOLERANCE = 1e-5  # fp32, sums in another order


def agrees(kept, states, expected):
    assert kept == sorted(expected)
    torch.testing.assert_close(states, torch.stack([expected[j] for j in kept]).float(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("keep", "options"), [(20, {}), (40, {"recycle": 0.2}), (44, {"partners": 9}), (3, {"absorb": 0.25}), (48, {})]
)
def test_it_recycles_what_it_removes(keep, options):
    view = random_view(methods.get("illava_v2")(), (1, 6, 8), seed=2)
    kept, states = result("illava_v2", view, keep, **options)
    for group in range(view.group_count):
        score = importance("illava_v2", view, group)
        agrees(kept[group], states[group], illava_v2_kept(view.features[group], score, keep, **options))


@pytest.mark.parametrize("keep", [1, 20, 47, 48])
def test_mode_1_drops_the_least_important(keep):
    view = random_view(methods.get("illava_v2")(), (1, 6, 8), seed=3)
    kept, states = result("illava_v2", view, keep, mode=1)
    for group in range(view.group_count):
        score = importance("illava_v2", view, group)
        agrees(kept[group], states[group], illava_v2_dropped(view.features[group], score, keep))


@pytest.mark.parametrize("keep", [1, 20, 46, 47, 48])
def test_mode_2_folds_the_end_of_the_sequence_step_by_step(keep):
    view = random_view(methods.get("illava_v2")(mode=2), (1, 6, 8), seed=3)
    kept, states = result("illava_v2", view, keep, mode=2)
    for group in range(view.group_count):
        agrees(kept[group], states[group], illava_v2_shifted(view.features[group], keep))
    sizes = methods.get("illava_v2")(mode=2).select(view, keep).kept_sizes(view.sizes)
    torch.testing.assert_close(sizes.sum(1), view.sizes.sum(1))


def test_mode_2_asks_for_no_attention():
    assert methods.get("illava_v2")(mode=2).needs() == ()


@pytest.mark.parametrize(
    "options",
    [
        {"recycle": 0.0},
        {"recycle": 1.5},
        {"partners": 0},
        {"absorb": 1.0},
        {"absorb": 0.0},
        {"mode": 4},
        {"mode": 1, "recycle": 0.2},
        {"mode": 2, "query": "all"},
    ],
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(SpecError, match="illava_v2"):
        methods.get("illava_v2")(**options)
