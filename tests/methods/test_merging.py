"""What all merge methods have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate import methods
from foveate.core.method import TokenMethod
from foveate.core.selection import merge_values
from foveate.core.view import TokenView
from foveate.ops.merging import bipartite_hosts, nearest, removed_indices
from tests.examples import examples
from tests.oracles.contract import random_view

TOLERANCE = 1e-5  # fp32, sums in another order


def result(name: str, view: TokenView, keep: int, **options: object) -> tuple[list[list[int]], Tensor]:
    """Kept indices and merged states of the kept tokens."""
    selection = methods.get(name)(**options).select(view, keep)
    selection.check_shapes(view.group_count, view.token_count, keep)
    selection.check_values(view.token_count)
    merged = merge_values(view.features, selection)
    kept = selection.kept
    return kept.tolist(), merged.gather(1, kept[..., None].expand(-1, -1, merged.shape[-1]))


def importance(name: str, view: TokenView, group: int) -> list[float]:
    return view.observe(methods.get(name)().needs()[0])[group].tolist()


MERGING = [one for one in examples(TokenMethod) if one.merges]


@pytest.mark.parametrize("method", MERGING, ids=str)
def test_conserving_merges_are_partitions(method: TokenMethod) -> None:
    view = random_view(method, (1, 6, 6), seed=5)
    keep = method.fixed_count((1, 6, 6)) or 13
    selection = method.select(view, keep)
    if not (selection.is_merge and selection.conserving):
        return  # an option that drops, or one that mixes tokens into several others
    sizes = selection.kept_sizes(view.sizes)
    torch.testing.assert_close(sizes.sum(1), view.sizes.sum(1))
    for group in range(view.group_count):
        rows = selection.matrix(group, 36).to_dense()
        assert ((rows != 0).sum(0) == 1).all(), "every token belongs to exactly one survivor"
        grown = rows.sum(1)
        assert method.sums or torch.allclose(grown, torch.ones(keep)), "a survivor is the mean of its tokens"
        assert not method.sums or (((grown - 1).abs() < 1e-6).any() and ((grown - 2).abs() < 1e-6).any())


def test_size_weighted_merges_keep_the_mean_of_all_tokens() -> None:
    for name in ("partition", "tome"):
        view = random_view(methods.get(name)(), (1, 6, 6), seed=6)
        _, states = result(name, view, 9)
        sizes = methods.get(name)().select(view, 9).kept_sizes(view.sizes)
        before = (view.features * view.sizes[..., None]).sum(1)
        torch.testing.assert_close((states * sizes[..., None]).sum(1), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", [one for one in MERGING if not one.sums], ids=str)
def test_merging_does_not_overflow_in_half_precision(method: TokenMethod) -> None:
    view = random_view(method, (1, 8, 8), seed=7)
    large = replace(view, features=(view.features.abs().clamp(max=2) * 1e4 + 4e4).to(torch.float16))
    merged = merge_values(large.features, method.select(large, method.fixed_count((1, 8, 8)) or 20))
    assert torch.isfinite(merged).all()


def test_a_similarity_table_is_made_in_pieces_and_equals_the_whole() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1300, 8), torch.randn(2, 40, 8)
    table = torch.nn.functional.cosine_similarity(queries[:, :, None], keys[:, None], dim=-1)
    values, index = nearest(queries, keys)
    torch.testing.assert_close(values, table.max(-1).values, atol=TOLERANCE, rtol=0)
    assert torch.equal(index, table.max(-1).indices)


def test_removed_indices_are_the_complement() -> None:
    assert removed_indices(torch.tensor([[0, 3, 4], [1, 2, 5]]), 6).tolist() == [[1, 2, 5], [0, 3, 4]]


def test_bipartite_rounds_never_remove_more_than_half_at_once() -> None:
    metric = torch.randn(1, 9, 4)
    kept, host = bipartite_hosts(metric, torch.ones(1, 9), 1)
    assert kept.shape == (1, 1)
    assert (host == kept).all()
