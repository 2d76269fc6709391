"""Selections: values that methods may not return are refused, merges equal plain loops in every dtype."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.selection import Selection, merge_values
from foveate.errors import MethodError

# fp32 sums of at most 12 terms of size 1, in another order.
FP32_SUM = 1e-6


def random_merge(seed: int, conserving: bool = True, groups: int = 2, tokens: int = 9, keep: int = 4) -> Selection:
    """Random kept tokens and random edges into them; conserving: each dropped token flows into one kept token."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(groups, tokens, generator=generator).argsort(dim=1)
    kept, dropped = order[:, :keep].sort(dim=1).values, order[:, keep:]
    source = dropped if conserving else torch.randint(0, tokens, (groups, 11), generator=generator)
    slot = torch.randint(0, keep, source.shape, generator=generator)
    return Selection(
        kept,
        source=source,
        target=kept.gather(1, slot),
        weight=torch.rand(source.shape, generator=generator),
        self_weight=torch.rand(kept.shape, generator=generator),
        conserving=conserving,
    )


def merged_by_loops(values: torch.Tensor, selection: Selection) -> torch.Tensor:
    out = values.double().clone()
    for group in range(values.shape[0]):
        for slot, token in enumerate(selection.kept[group].tolist()):
            out[group, token] = values[group, token].double() * selection.self_weight[group, slot].double()
        for edge in range(selection.source.shape[1]):
            source, target = int(selection.source[group, edge]), int(selection.target[group, edge])
            out[group, target] += values[group, source].double() * selection.weight[group, edge].double()
    return out


@given(st.integers(0, 10_000), st.booleans())
def test_merging_equals_plain_loops_over_the_old_values(seed, conserving):
    selection = random_merge(seed, conserving)
    values = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(seed))
    before = values.clone()
    assert (merge_values(values, selection) - merged_by_loops(values, selection)).abs().max() < 10 * FP32_SUM
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_merging_rounds_once_from_fp32_whatever_the_dtype(dtype):
    selection = random_merge(3)
    values = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
    merged = merge_values(values, selection)
    assert merged.dtype == dtype
    expected = merge_values(values.float(), selection).to(dtype)
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_partial_sums_beyond_the_range_of_half_precision_do_not_overflow(dtype):
    # 60000 + 60000 + 60000 - 60000 - 60000: partial sums pass fp16's largest number, 65504.
    selection = Selection(
        torch.tensor([[0]]),
        source=torch.tensor([[1, 2, 3, 4]]),
        target=torch.zeros(1, 4, dtype=torch.long),
        weight=torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
        self_weight=torch.ones(1, 1),
        conserving=True,
    )
    values = torch.full((1, 5, 2), 60000.0).to(dtype)
    assert torch.equal(merge_values(values, selection)[:, 0], values[:, 0])


def test_the_mean_of_many_small_values_is_not_lost_in_half_precision():
    count = 4096  # a bf16 running sum of ones stops growing at 256
    selection = Selection(
        torch.tensor([[0]]),
        source=torch.arange(1, count)[None],
        target=torch.zeros(1, count - 1, dtype=torch.long),
        weight=torch.full((1, count - 1), 1 / count),
        self_weight=torch.full((1, 1), 1 / count),
    )
    values = torch.ones(1, count, 1, dtype=torch.bfloat16)
    assert float(merge_values(values, selection)[0, 0, 0]) == 1.0


def test_a_default_dtype_of_the_caller_changes_nothing():
    selection, values = random_merge(5), torch.randn(2, 9, 3)
    expected, matrix = merge_values(values, selection), selection.matrix(0, 9).to_dense()
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(merge_values(values, selection), expected)
        assert torch.equal(selection.matrix(0, 9).to_dense(), matrix)
        assert Selection(selection.kept).matrix(0, 9).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_drop_changes_no_value():
    values = torch.randn(2, 9, 3)
    assert merge_values(values, Selection(torch.tensor([[1], [2]]))) is values


@given(st.integers(0, 10_000), st.booleans())
def test_the_matrix_is_the_merge(seed, conserving):
    selection = random_merge(seed, conserving)
    values = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(seed))
    merged = merge_values(values, selection)
    for group in range(2):
        rows = selection.matrix(group, 9).to_dense() @ values[group]
        assert (rows - merged[group, selection.kept[group]]).abs().max() < 10 * FP32_SUM


def test_the_matrix_of_a_drop_picks_the_kept_tokens():
    matrix = Selection(torch.tensor([[0, 3], [1, 2]])).matrix(1, 4).to_dense()
    assert matrix.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


@given(st.integers(0, 10_000))
def test_sizes_of_a_conserving_merge_of_all_tokens_add_up(seed):
    sizes = torch.randint(1, 9, (2, 9), generator=torch.Generator().manual_seed(seed)).float()
    kept = random_merge(seed).kept_sizes(sizes)
    assert torch.equal(kept.sum(dim=1), sizes.sum(dim=1))


def test_sizes_of_dropped_tokens_are_gone():
    sizes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert Selection(torch.tensor([[1, 3]])).kept_sizes(sizes).tolist() == [[2, 4]]
    partly = Selection(torch.tensor([[1, 3]]), torch.tensor([[0]]), torch.tensor([[3]]), torch.ones(1, 1), torch.ones(1, 2))
    assert partly.kept_sizes(sizes).tolist() == [[2, 5]]
    assert replace(partly, conserving=False).kept_sizes(sizes).tolist() == [[2, 4]]


MERGE = Selection(
    kept=torch.tensor([[0, 2], [1, 3]]),
    source=torch.tensor([[1], [0]]),
    target=torch.tensor([[2], [1]]),
    weight=torch.ones(2, 1),
    self_weight=torch.ones(2, 2),
)


def check(selection: Selection, keep: int = 2) -> None:
    selection.check_shapes(2, 4, keep)
    selection.check_values(4)


def test_a_sound_merge_passes():
    check(MERGE)
    check(Selection(MERGE.kept))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": torch.tensor([[0, 2]])}, "budget asks for"),
        ({"kept": torch.tensor([[0, 1, 2], [0, 1, 2]])}, "budget asks for"),
        ({"kept": MERGE.kept.int()}, "long"),
        ({"kept": torch.tensor([[2, 0], [1, 3]])}, "ascending"),
        ({"kept": torch.tensor([[0, 2], [3, 3]])}, "without repeats"),
        ({"kept": torch.tensor([[0, 2], [1, 4]])}, r"outside 0\.\.3"),
        ({"kept": torch.tensor([[-1, 2], [1, 3]])}, r"outside 0\.\.3"),
        ({"target": None}, "given together"),
        ({"source": None, "target": None, "weight": None}, "belongs to a merge"),
        ({"weight": torch.ones(2, 2)}, "same shape"),
        ({"self_weight": None}, "needs self_weight"),
        ({"self_weight": torch.ones(2, 1)}, "needs self_weight"),
        ({"source": torch.tensor([[4], [0]])}, "source holds an index outside"),
        ({"target": torch.tensor([[2], [-1]])}, "target holds an index outside"),
        ({"target": torch.tensor([[3], [1]])}, "every target must be a kept token"),
        ({"source": torch.tensor([[0], [0]])}, "kept token as a source"),
        ({"source": MERGE.source.int()}, "must be long"),
    ],
)
def test_what_a_method_must_not_return_is_refused(change, message):
    with pytest.raises(MethodError, match=message):
        check(replace(MERGE, **change))


def test_edges_of_fewer_groups_are_refused():
    one = {name: getattr(MERGE, name)[:1] for name in ("source", "target", "weight")}
    with pytest.raises(MethodError, match="G = 2"):
        check(replace(MERGE, **one))


def test_a_source_with_two_targets_is_no_conserving_merge():
    twice = replace(
        MERGE,
        source=torch.tensor([[1, 1], [0, 0]]),
        target=torch.tensor([[0, 2], [1, 3]]),
        weight=torch.ones(2, 2),
    )
    with pytest.raises(MethodError, match="gives each source one target"):
        check(twice)
    check(replace(twice, conserving=False))
