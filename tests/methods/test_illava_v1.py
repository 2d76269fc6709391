"""iLLaVA v1 against its plain-loop twin."""

from __future__ import annotations

import pytest
import torch

from foveate import methods
from foveate.errors import SpecError
from foveate.methods.illava_v1 import RAMPS
from tests.methods.test_merging import importance, result
from tests.oracles.contract import random_view
from tests.oracles.merging import illava_v1_kept

TOLERANCE = 1e-5  # fp32, sums in another order


def agrees(kept, states, expected):
    assert kept == sorted(expected)
    torch.testing.assert_close(states, torch.stack([expected[j] for j in kept]).float(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("keep", [1, 5, 11, 12])
def test_it_folds_the_least_important_into_the_next_one_up(keep, ramp):
    view = random_view(methods.get("illava_v1")(), (1, 3, 4), seed=1)
    kept, states = result("illava_v1", view, keep, ramp=ramp)
    for group in range(view.group_count):
        score = importance("illava_v1", view, group)
        agrees(kept[group], states[group], illava_v1_kept(view.features[group], score, keep, ramp))


def test_the_host_keeps_one_part_in_4371_when_92_go():
    view = random_view(methods.get("illava_v1")(), (1, 27, 27), seed=0)
    selection = methods.get("illava_v1")().select(view, 637)
    assert float(selection.self_weight.min()) == pytest.approx(1 / 4371)


def test_the_host_keeps_one_part_in_5995_when_108_of_361_go():
    view = random_view(methods.get("illava_v1")(), (1, 19, 19), seed=0)
    selection = methods.get("illava_v1")().select(view, 253)
    assert float(selection.self_weight.min()) == pytest.approx(1 / 5995)


def test_an_unknown_ramp_is_refused():
    with pytest.raises(SpecError, match="least, most, even"):
        methods.get("illava_v1")(ramp="steep")
