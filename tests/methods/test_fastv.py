"""FastV against its plain-loop twin, and the words it understands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.site import SiteKind
from foveate.core.view import AttentionRows
from foveate.errors import SpecError
from foveate.methods.fastv import FastV
from tests.oracles.contract import random_view
from tests.oracles.controls import window_kept
from tests.oracles.fastv import fastv_kept


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 3))
@settings(max_examples=40)
def test_it_keeps_what_the_twin_keeps(seed, keep, rater_count):
    batch, heads, width = 2, 3, 30
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(batch, heads, width, width, generator=generator)
    columns, raters = list(range(4, 24)), list(range(width - rater_count, width))
    rows = attention[:, :, raters].mean(dim=2)[..., columns]  # [B, H, N], what the engine hands over
    method = FastV()
    view = random_view(method, (1, 4, 5), seed, groups=batch)
    view = replace(view, observed={AttentionRows("last", True): rows})
    kept = method.select(view, keep).kept
    for row in range(batch):
        assert [columns[index] for index in kept[row].tolist()] == fastv_kept(attention, row, columns, raters, keep)


def test_equal_attention_keeps_the_earlier_tokens():
    method = FastV()
    view = random_view(method, (1, 4, 4), 0, groups=1)
    view = replace(view, observed={AttentionRows(): torch.full((1, 4, 16), 0.25)})
    assert method.select(view, 5).kept.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_windows_choose_what_the_twin_chooses(side):
    method = FastV(topk=f"window:{side}")
    view = random_view(method, (2, 5, 4), side)
    score = view.observed[AttentionRows()].mean(dim=1)
    for keep in (1, 7, 39, 40):
        expected = [
            window_kept(score[group].tolist(), [tuple(point) for point in view.coords[group].tolist()], keep, side)
            for group in range(view.group_count)
        ]
        assert method.select(view, keep).kept.tolist() == expected


@pytest.mark.parametrize("query", ["last", "text", "all", "window:16"])
@pytest.mark.parametrize("rope", [True, False])
def test_it_asks_for_the_rows_of_its_raters(query, rope):
    assert FastV(query=query, rope=rope).needs() == (AttentionRows(query, rope),)


@pytest.mark.parametrize("text", ["first", "window", "window:", "window:0", "window:-1", "window:x", "window:²", "window:1.5"])
@pytest.mark.parametrize("option", ["query", "topk"])
def test_words_it_does_not_know_are_refused_with_those_it_knows(option, text):
    with pytest.raises(SpecError, match=rf"fastv\({option}=.*allowed are .*window:"):
        FastV(**{option: text})


def test_it_acts_inside_the_decoder_only_and_reads_no_hidden_states():
    assert FastV.sites == (SiteKind.LLM_LAYER,)
    assert not FastV.reads_features
