"""ROUGE-L against numbers by hand; METEOR is nltk's own where nltk has its data."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from foveate.evaluate.overlap import overlap_score, rouge_l, words


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("a red circle.", "a red circle.", 1.0),
        ("A Red circle .", "a red circle.", 1.0),
        ("a b c d", "a c b d", 2 * 3 / 8),
        ("police killed the gunman", "the gunman killed police", 2 * 2 / 8),
        ("a", "b", 0.0),
        ("", "b", 0.0),
        ("", "", 0.0),
        ("x x x", "x", 2 * 1 / 4),
    ],
)
def test_rouge_l_by_hand(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score)
    assert rouge_l(reference, answer) == pytest.approx(score)


def test_words_are_numbers_letters_and_signs():
    assert words("There are 10 Objects, größer!") == ["there", "are", "10", "objects", ",", "größer", "!"]


def fake_nltk(monkeypatch, single):
    nltk, translate, scoring = ModuleType("nltk"), ModuleType("nltk.translate"), ModuleType("nltk.translate.meteor_score")
    nltk.word_tokenize = str.split
    scoring.single_meteor_score = single
    for module in (nltk, translate, scoring):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_meteor_gets_the_reference_first_as_nltk_wants_it(monkeypatch):
    calls = []
    fake_nltk(monkeypatch, lambda reference, answer: calls.append((reference, answer)) or 0.25)
    score = overlap_score()
    assert score.name == "meteor"
    assert score.of("an answer", "the reference") == 0.25
    assert calls[-1] == (["the", "reference"], ["an", "answer"])


def test_without_wordnet_or_nltk_the_score_has_another_name(monkeypatch):
    def missing(*_):
        raise LookupError("Resource wordnet not found")

    fake_nltk(monkeypatch, missing)
    assert overlap_score().name == "rouge_l"
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert overlap_score().name == "rouge_l" and overlap_score().of("a", "a") == 1.0
