"""HoloV against its plain-loop twin."""

from __future__ import annotations

import pytest
import torch

from foveate.core.view import EncoderAttention
from foveate.methods.holov import HoloV
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.contract import random_view
from tests.oracles.selectors import holov_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("options", [{}, {"parts": 1}, {"parts": 5, "context": 0.5}, {"parts": 40}])
def test_it_keeps_what_the_twin_keeps(options, keep):
    method = HoloV(**options)
    view = spoiled_view(method, "random", seed=9)
    attention = view.observe(EncoderAttention()).tolist()
    expected = [holov_kept(features, own, keep, **options) for features, own in zip(view.features, attention, strict=True)]
    assert kept_of(method, view, keep) == expected


def test_a_part_with_all_the_attention_gives_what_it_cannot_keep_to_the_others():
    method = HoloV(parts=4)
    view = random_view(method, (1, 4, 6), seed=0)
    attention = view.observe(EncoderAttention())
    attention[:] = 1e-6 * torch.rand(attention.shape)
    attention[:, 6:12] += 1.0
    for group, kept in enumerate(kept_of(method, view, 12)):
        assert {*range(6, 12)} <= set(kept)
        assert kept == holov_kept(view.features[group], attention[group].tolist(), 12, parts=4)


@pytest.mark.parametrize("kind", SPOILED)
def test_every_count_is_exact_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(HoloV(), spoiled_view(HoloV(), kind), keep)


def test_more_parts_than_tokens_are_as_many_as_tokens():
    view = spoiled_view(HoloV(), "random")
    assert kept_of(HoloV(parts=10**15), view, 7) == kept_of(HoloV(parts=24), view, 7)
