"""MMTok against its plain-loop twin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foveate.core.view import QuestionTokens
from foveate.methods.mmtok import MMTok
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import mmtok_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("options", [{}, {"text": 0.1, "image": 0.5, "picture": 2.0}, {"picture": 0.01}])
def test_it_keeps_what_the_twin_keeps(options, keep):
    method = MMTok(**options)
    view = spoiled_view(method, "random", seed=3)
    words = view.observe(QuestionTokens())
    expected = [mmtok_kept(features, own, keep, **options) for features, own in zip(view.features, words, strict=True)]
    assert kept_of(method, view, keep) == expected


@pytest.mark.parametrize("kind", SPOILED)
def test_no_token_is_chosen_twice_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(MMTok(), spoiled_view(MMTok(), kind), keep)


def test_rows_behind_a_shorter_question_say_nothing():
    view = spoiled_view(MMTok(), "random")
    words = view.observe(QuestionTokens())[:, :2]
    longer = words.new_zeros(3, 7, words.shape[2])
    longer[:, :2] = words
    both = [kept_of(MMTok(), replace(view, observed={QuestionTokens(): own}), 6) for own in (words, longer)]
    assert both[0] == both[1]
