"""Traces: provenance is the product of the stages, down to the tokens that the processor made."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.layout import Medium
from foveate.core.selection import Selection
from foveate.core.shape import MediumShape
from foveate.core.trace import GroupRecord, Trace
from tests.core.test_selection import random_merge

# Products of three fp32 matrices with entries below 1 and rows of at most 10 terms.
PRODUCT = 1e-5


def medium(tokens: int, row: int = 0, index: int = 0, frames: int = 1) -> Medium:
    shape = MediumShape("video" if frames > 1 else "image", (frames, 1, tokens // frames))
    return Medium(row, index, shape, torch.arange(tokens))


def pick(*kept: int) -> Selection:
    return Selection(torch.tensor([kept]))


def group(trace: Trace, stage: str, owner: list[int] | torch.Tensor, selection: Selection, row: int = 0) -> None:
    trace.add(GroupRecord(stage, torch.as_tensor(owner), selection, row))


def dense(selection: Selection, tokens: int, row: int = 0) -> torch.Tensor:
    """The stage's matrix, written without the code under test."""
    out = torch.zeros(selection.kept.shape[1], tokens)
    slots = {token: slot for slot, token in enumerate(selection.kept[row].tolist())}
    for token, slot in slots.items():
        out[slot, token] += 1.0 if selection.self_weight is None else float(selection.self_weight[row, slot])
    if selection.source is not None:
        for edge, source in enumerate(selection.source[row].tolist()):
            out[slots[int(selection.target[row, edge])], source] += float(selection.weight[row, edge])
    return out


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=50)
def test_provenance_of_three_stages_is_the_product_of_their_matrices(seed, conserving):
    sizes = (12, 8, 5, 3)
    trace = Trace()
    trace.add_media((medium(12),))
    expected, alive = torch.eye(12), torch.arange(12)
    for number, (arriving, keep) in enumerate(itertools.pairwise(sizes)):
        selection = random_merge(seed + number, conserving, groups=2, tokens=arriving, keep=keep)
        group(trace, f"stage {number}", [0] * arriving, selection, row=1)
        expected = dense(selection, arriving, row=1) @ expected
        alive = alive[selection.kept[1]]
        entry = trace.media[0]
        assert (entry.stages[number][1].to_dense() - expected).abs().max() < PRODUCT
        assert torch.equal(entry.kept_index, alive)
    assert [stage for stage, _ in trace.media[0].stages] == ["stage 0", "stage 1", "stage 2"]


def test_sources_say_what_a_survivor_is_made_of():
    trace = Trace()
    trace.add_media((medium(4),))
    pair = Selection(
        torch.tensor([[0, 2]]), torch.tensor([[1, 3]]), torch.tensor([[0, 2]]), torch.full((1, 2), 0.5), torch.full((1, 2), 0.5)
    )
    group(trace, "pairs", [0] * 4, pair)
    join = Selection(
        torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([[1]]), torch.full((1, 1), 0.25), torch.full((1, 1), 0.75)
    )
    group(trace, "join", [0] * 2, join)
    entry = trace.media[0]
    index, weight = entry.sources(0)
    assert index.tolist() == [0, 1, 2, 3] and weight.tolist() == [0.125, 0.125, 0.375, 0.375]
    index, weight = entry.sources(1, stage=0)
    assert index.tolist() == [2, 3] and weight.tolist() == [0.5, 0.5]
    assert [kept.tolist() for kept in entry.kept] == [[0, 2], [2]]


def test_frames_of_a_video_are_one_stage_of_one_medium():
    trace = Trace()
    trace.add_media((medium(12, frames=3),))
    for kept in [(0, 1), (2, 3), (1, 2)]:
        group(trace, "by frame", [0] * 4, pick(*kept))
    entry = trace.media[0]
    assert entry.kept_index.tolist() == [0, 1, 6, 7, 9, 10]
    assert entry.stages[0][1].to_dense().tolist() == torch.eye(12)[[0, 1, 6, 7, 9, 10]].tolist()
    group(trace, "whole", [0] * 6, pick(1, 2, 5))
    assert trace.media[0].kept_index.tolist() == [1, 6, 10]
    assert trace.media[0].stages[1][1].shape == (3, 12)


def test_one_ranking_over_a_sample_is_split_by_medium():
    trace = Trace()
    trace.add_media((medium(4), medium(3, index=1)))
    group(trace, "sample", [0, 0, 0, 0, 1, 1, 1], pick(1, 3, 4, 6))
    first, second = trace.media
    assert first.kept_index.tolist() == [1, 3] and second.kept_index.tolist() == [0, 2]
    assert first.stages[0][1].shape == (2, 4) and second.stages[0][1].shape == (2, 3)
    group(trace, "again", [0, 0, 1, 1], pick(0, 3))
    first, second = trace.media
    assert first.kept_index.tolist() == [1] and second.kept_index.tolist() == [2]
    assert second.stages[1][1].to_dense().tolist() == [[0, 0, 1]]


def test_a_medium_without_survivors_counts_the_same_stages_as_its_neighbours():
    trace = Trace()
    trace.add_media((medium(3), medium(3, index=1), medium(3, row=1)))
    group(trace, "one", [0, 0, 0, 1, 1, 1], pick(4, 5))
    group(trace, "two", [1, 1], pick(1))
    group(trace, "one", [2, 2, 2], pick(0, 1))
    first, second, other = trace.media
    assert [stage for stage, _ in first.stages] == [stage for stage, _ in second.stages] == ["one", "two"]
    assert [kept.tolist() for kept in first.kept] == [[], []]
    assert first.stages[1][1].shape == (0, 3)
    assert [stage for stage, _ in other.stages] == ["one"]


def test_media_of_later_turns_get_keys_of_their_own():
    trace = Trace()
    assert trace.add_media((medium(3), medium(3, row=1))) == 0
    group(trace, "cut", [0] * 3, pick(2))
    group(trace, "cut", [1] * 3, pick(1))
    assert trace.add_media((medium(4, index=1),)) == 2
    group(trace, "cut", [2] * 4, pick(0, 3))
    assert [entry.kept_index.tolist() for entry in trace] == [[2], [1], [0, 3]]
    assert [entry.kept_index.tolist() for entry in trace.sample(0)] == [[2], [0, 3]]
    assert len(trace) == 3


def test_a_medium_that_no_stage_touched_keeps_everything():
    trace = Trace()
    trace.add_media((medium(3),))
    assert trace.media[0].kept_index.tolist() == [0, 1, 2]
    assert trace.media[0].stages == []


def test_clear_forgets_everything():
    trace = Trace()
    trace.add_media((medium(3),))
    group(trace, "cut", [0] * 3, pick(0))
    trace.clear()
    assert len(trace) == 0 and trace.media == []


@pytest.mark.parametrize("token", [-1, 0, 1])
def test_sources_of_a_plain_drop_are_the_token_itself(token):
    trace = Trace()
    trace.add_media((medium(5),))
    group(trace, "cut", [0] * 5, pick(1, 4))
    index, weight = trace.media[0].sources(token)
    assert index.tolist() == [[1, 4][token]] and weight.tolist() == [1.0]
