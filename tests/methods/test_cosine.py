"""Cosine against its plain-loop twin."""

from __future__ import annotations

import pytest

from foveate.methods.cosine import Cosine
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import cosine_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("kind", ["random", "huge"])
def test_it_keeps_what_the_twin_keeps(kind, keep):
    view = spoiled_view(Cosine(), kind)
    assert kept_of(Cosine(), view, keep) == [cosine_kept(features, keep) for features in view.features]


@pytest.mark.parametrize("kind", SPOILED)
def test_every_count_is_exact_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(Cosine(), spoiled_view(Cosine(), kind), keep)
