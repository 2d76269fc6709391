"""The stride gate against its plain-loop twin."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.view import StepView
from foveate.methods.stride_gate import StrideGate
from tests.oracles.controls import stride_gate_kept


def kept(count: int, keep: float) -> list[bool]:
    number = torch.arange(count)[None]
    return StrideGate().gate(StepView(torch.zeros(1, count, 2), number), keep)[0].tolist()


@given(st.integers(1, 500), st.integers(1, 1_000_000))
def test_it_stores_what_the_twin_stores(count, millionths):
    assert kept(count, millionths / 1_000_000) == stride_gate_kept(count, millionths)


def test_a_half_is_every_other_token():
    assert kept(6, 0.5) == [False, True] * 3


def test_everything_is_everything():
    assert all(kept(50, 1.0))
