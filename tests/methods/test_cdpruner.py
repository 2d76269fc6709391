"""CDPruner against its plain-loop twin, and its determinants against all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from foveate.core.view import QuestionTokens
from foveate.errors import SpecError
from foveate.methods.cdpruner import CDPruner
from foveate.ops.greedy import determinantal, unit_rows
from tests.methods.selecting import SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import cdpruner_kept

# Features of eight numbers span a kernel of rank eight: beyond it every determinant is zero.
WITHIN_RANK = (1, 3, 8)


@pytest.mark.parametrize("keep", WITHIN_RANK)
@pytest.mark.parametrize(("weight", "theta"), [("linear", None), ("theta:.8", 0.8), ("theta:0", 0.0)])
def test_it_keeps_what_the_twin_keeps(weight, theta, keep):
    method = CDPruner(weight)
    view = spoiled_view(method, "random", seed=4)
    expected = [
        cdpruner_kept(features, words, keep, theta)
        for features, words in zip(view.features, view.observe(QuestionTokens()), strict=True)
    ]
    assert kept_of(method, view, keep) == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_first_choices_are_the_best_of_all_subsets_of_ten(seed):
    generator = torch.Generator().manual_seed(seed)
    points = unit_rows(torch.randn(1, 10, 16, generator=generator))
    quality = torch.rand(1, 10, generator=generator) + 0.5
    kernel = (quality[0, :, None] * (points[0] @ points[0].T) * quality[0]).double()
    for keep in (1, 2, 3, 4):
        chosen = determinantal(points, quality, keep)[0].tolist()
        mine = float(kernel[chosen][:, chosen].det())
        best = max(float(kernel[list(some)][:, list(some)].det()) for some in combinations(range(10), keep))
        assert mine <= best * (1 + 1e-6)
        assert keep > 1 or mine == pytest.approx(best)
        assert mine >= best * 0.3, "greedy is close"


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("keep", [1, 9, 23, 24])
def test_no_token_is_chosen_twice_whatever_it_is_shown(kind, keep):
    kept_of(CDPruner(), spoiled_view(CDPruner(), kind), keep)


def test_where_nothing_adds_anything_the_relevant_ones_are_kept():
    view = spoiled_view(CDPruner(), "all equal")
    words = view.observe(QuestionTokens())
    assert kept_of(CDPruner(), replace(view, observed={QuestionTokens(): words}), 4) == [[0, 1, 2, 3]] * 3


def test_another_question_keeps_other_tokens():
    view = spoiled_view(CDPruner(), "random")
    turned = replace(view, observed={QuestionTokens(): -view.observe(QuestionTokens())})
    assert kept_of(CDPruner(), view, 6) != kept_of(CDPruner(), turned, 6)
    alone = CDPruner("theta:0")
    assert kept_of(alone, view, 6) == kept_of(alone, turned, 6), "diversity alone does not read the question"


@pytest.mark.parametrize("weight", ["theta:1", "theta:", "linear:1", "theta:-1"])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(SpecError, match="allowed are linear and theta:t"):
        CDPruner(weight)
