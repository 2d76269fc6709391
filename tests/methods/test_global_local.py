"""Half global, half local, against its plain-loop twin."""

from __future__ import annotations

import pytest
import torch

from foveate.core.selection import merge_values
from foveate.methods.global_local import GlobalLocal
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import global_local_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("window", "merge"), [(4, True), (2, True), (3, False)])
def test_it_keeps_and_merges_what_the_twin_does(window, merge, keep):
    method = GlobalLocal(window=window, merge=merge)
    view = spoiled_view(method, "random", seed=8)
    states = merge_values(view.features, method.select(view, keep))
    late, early = (view.observe(need).tolist() for need in method.needs())
    coords = [tuple(place) for place in view.coords[0].tolist()]
    for group, kept in enumerate(kept_of(method, view, keep)):
        own = view.features[group], late[group], early[group], coords, view.sizes[group]
        expected = global_local_kept(*own, keep, window, merge)
        assert kept == sorted(expected)
        torch.testing.assert_close(states[group, kept], torch.stack([expected[i] for i in kept]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SPOILED)
def test_every_count_is_exact_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(GlobalLocal(), spoiled_view(GlobalLocal(), kind), keep)
