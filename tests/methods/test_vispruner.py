"""VisPruner against its plain-loop twin."""

from __future__ import annotations

import pytest

from foveate.core.view import EncoderAttention
from foveate.methods.vispruner import VisPruner
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import vispruner_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    "options", [{}, {"important": 0.0, "at_once": 1}, {"important": 0.75, "at_once": 2}, {"important": 1.0}]
)
def test_it_keeps_what_the_twin_keeps(options, keep):
    method = VisPruner(**options)
    view = spoiled_view(method, "random", seed=7)
    attention = view.observe(EncoderAttention()).tolist()
    expected = [vispruner_kept(features, own, keep, **options) for features, own in zip(view.features, attention, strict=True)]
    assert kept_of(method, view, keep) == expected


@pytest.mark.parametrize("kind", SPOILED)
def test_every_count_is_exact_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(VisPruner(), spoiled_view(VisPruner(), kind), keep)
