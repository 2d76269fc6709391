"""iLLaVA v1 and v2, partition and ToMe against loops written from their papers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate import methods
from foveate.core.selection import merge_values
from foveate.core.view import TokenView
from foveate.errors import SpecError
from foveate.ops.merging import bipartite_hosts, nearest, removed_indices
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


@pytest.mark.parametrize("keep", [1, 5, 11, 12])
def test_v1_folds_the_least_important_into_the_next_one_up(keep: int) -> None:
    view = random_view(methods.get("illava_v1")(), (1, 3, 4), seed=1)
    kept, states = result("illava_v1", view, keep)
    for group in range(view.group_count):
        score, h = importance("illava_v1", view, group), view.features[group].double()
        ascending = sorted(range(12), key=lambda j: score[j])
        r = 12 - keep
        chosen = ascending[: r + 1]
        expected = {j: h[j] for j in range(12) if j not in chosen[:-1]}
        weights = [r + 1 - i for i in range(r + 1)]
        assert sum(weights) == (r + 1) * (r + 2) // 2
        if r:
            expected[chosen[-1]] = sum(w * h[j] for w, j in zip(weights, chosen, strict=True)) / sum(weights)
        assert kept[group] == sorted(expected)
        torch.testing.assert_close(
            states[group], torch.stack([expected[j] for j in sorted(expected)]).float(), atol=TOLERANCE, rtol=0
        )


def test_v1_leaves_its_host_one_part_in_4371_when_it_removes_92() -> None:
    view = random_view(methods.get("illava_v1")(), (1, 27, 27), seed=0)
    selection = methods.get("illava_v1")().select(view, 637)
    assert selection.self_weight is not None
    assert float(selection.self_weight.min()) == pytest.approx(1 / 4371)


@pytest.mark.parametrize(("keep", "options"), [(20, {}), (40, {"recycle": 0.2}), (44, {"partners": 9}), (3, {"absorb": 0.25})])
def test_v2_recycles_what_it_removes(keep: int, options: dict[str, float]) -> None:
    view = random_view(methods.get("illava_v2")(), (1, 6, 8), seed=2)
    kept, states = result("illava_v2", view, keep, **options)
    recycle, partners, absorb = options.get("recycle", 0.05), int(options.get("partners", 5)), options.get("absorb", 0.5)
    for group in range(view.group_count):
        score, h = importance("illava_v2", view, group), view.features[group].double()
        order = sorted(range(48), key=lambda j: -score[j])
        count = max(1, round(recycle * keep))
        recycling, removed = order[keep - count : keep], order[keep:]
        expected = {j: h[j] for j in order[:keep]}
        for c in recycling:
            best = sorted(removed, key=lambda j: -float(h[c] @ h[j]))[: min(partners, len(removed))]
            logits = torch.stack([h[c] @ h[j] / math.sqrt(h.shape[1]) for j in best])
            absorbed = sum(a * h[j] for a, j in zip(logits.softmax(0), best, strict=True))
            expected[c] = (1 - absorb) * h[c] + absorb * absorbed
        assert kept[group] == sorted(expected)
        torch.testing.assert_close(
            states[group], torch.stack([expected[j] for j in sorted(expected)]).float(), atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("keep", [1, 7, 23])
def test_partition_averages_every_removed_token_into_the_survivor_most_like_it(keep: int) -> None:
    view = random_view(methods.get("partition")(), (1, 4, 6), seed=3)
    kept, states = result("partition", view, keep)
    for group in range(view.group_count):
        score, h, sizes = importance("partition", view, group), view.features[group].double(), view.sizes[group].double()
        survivors = sorted(sorted(range(24), key=lambda j: -score[j])[:keep])
        assert kept[group] == survivors
        members = {k: [k] for k in survivors}
        for j in range(24):
            if j not in members:
                members[max(survivors, key=lambda k: float(torch.cosine_similarity(h[j], h[k], dim=0)))].append(j)
        expected = [sum(sizes[j] * h[j] for j in members[k]) / sum(sizes[j] for j in members[k]) for k in survivors]
        torch.testing.assert_close(states[group], torch.stack(expected).float(), atol=TOLERANCE, rtol=0)


def tome_by_loops(features: Tensor, sizes: Tensor, keep: int) -> dict[int, tuple[Tensor, float]]:
    """State and size of each survivor; survivors are named after their first token of set B, or themselves."""
    alive = [(j, features[j].double(), float(sizes[j])) for j in range(len(features))]
    while len(alive) > keep:
        removing = min(len(alive) - keep, len(alive) // 2)
        links = []
        for a in range(0, len(alive), 2):
            similar = [float(torch.cosine_similarity(alive[a][1], alive[b][1], dim=0)) for b in range(1, len(alive), 2)]
            links.append((max(similar), a, 1 + 2 * similar.index(max(similar))))
        chosen = sorted(links, key=lambda link: -link[0])[:removing]
        for _, a, b in chosen:
            # All merges of a round use the states of its start: a mean of means by size is the mean of all.
            name, state, size = alive[b]
            total = size + alive[a][2]
            alive[b] = (name, (state * size + alive[a][1] * alive[a][2]) / total, total)
        gone = {a for _, a, _ in chosen}
        alive = [token for i, token in enumerate(alive) if i not in gone]
    return {name: (state, size) for name, state, size in alive}


@pytest.mark.parametrize("keep", [1, 4, 15, 20, 29])
def test_tome_merges_along_the_most_similar_links(keep: int) -> None:
    view = random_view(methods.get("tome")(), (1, 5, 6), seed=4)
    kept, states = result("tome", view, keep)
    sizes = methods.get("tome")().select(view, keep).kept_sizes(view.sizes)
    for group in range(view.group_count):
        expected = tome_by_loops(view.features[group], view.sizes[group], keep)
        assert kept[group] == sorted(expected)
        for slot, name in enumerate(kept[group]):
            torch.testing.assert_close(states[group, slot], expected[name][0].float(), atol=TOLERANCE, rtol=0)
            assert float(sizes[group, slot]) == pytest.approx(expected[name][1])


@pytest.mark.parametrize("name", ["illava_v1", "partition", "tome", "pool"])
def test_conserving_merges_are_partitions(name: str) -> None:
    method = methods.get(name)()
    view = random_view(method, (1, 6, 6), seed=5)
    keep = method.fixed_count((1, 6, 6)) or 13
    selection = method.select(view, keep)
    sizes = selection.kept_sizes(view.sizes)
    torch.testing.assert_close(sizes.sum(1), view.sizes.sum(1))
    for group in range(view.group_count):
        rows = selection.matrix(group, 36).to_dense()
        assert ((rows != 0).sum(0) == 1).all(), "every token belongs to exactly one survivor"
        torch.testing.assert_close(rows.sum(1), torch.ones(keep))


def test_size_weighted_merges_keep_the_mean_of_all_tokens() -> None:
    for name in ("partition", "tome"):
        view = random_view(methods.get(name)(), (1, 6, 6), seed=6)
        _, states = result(name, view, 9)
        sizes = methods.get(name)().select(view, 9).kept_sizes(view.sizes)
        before = (view.features * view.sizes[..., None]).sum(1)
        torch.testing.assert_close((states * sizes[..., None]).sum(1), before, atol=1e-4, rtol=0)


def test_merging_does_not_overflow_in_half_precision() -> None:
    for name in ("illava_v1", "illava_v2", "partition", "tome"):
        method = methods.get(name)()
        view = random_view(method, (1, 8, 8), seed=7)
        large = replace(view, features=(view.features.abs().clamp(max=2) * 1e4 + 4e4).to(torch.float16))
        _, states = result(name, large, 20)
        assert torch.isfinite(states).all(), name


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


@pytest.mark.parametrize("options", [{"recycle": 0.0}, {"recycle": 1.5}, {"partners": 0}, {"absorb": 1.0}, {"absorb": 0.0}])
def test_v2_refuses_options_without_meaning(options: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="illava_v2"):
        methods.get("illava_v2")(**options)
