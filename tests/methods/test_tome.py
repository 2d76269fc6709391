"""ToMe against its plain-loop twin."""

from __future__ import annotations

import pytest
import torch

from foveate import methods
from tests.methods.test_merging import result
from tests.oracles.contract import random_view
from tests.oracles.merging import tome_kept


@pytest.mark.parametrize("keep", [1, 4, 15, 20, 29, 30])
def test_it_merges_along_the_most_similar_links(keep):
    view = random_view(methods.get("tome")(), (1, 5, 6), seed=4)
    kept, states = result("tome", view, keep)
    sizes = methods.get("tome")().select(view, keep).kept_sizes(view.sizes)
    for group in range(view.group_count):
        expected = tome_kept(view.features[group], view.sizes[group], keep)
        assert kept[group] == sorted(expected)
        for slot, name in enumerate(kept[group]):
            torch.testing.assert_close(states[group, slot], expected[name][0].float(), atol=1e-5, rtol=0)
            assert float(sizes[group, slot]) == pytest.approx(expected[name][1])
