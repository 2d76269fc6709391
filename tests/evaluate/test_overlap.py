"""ROUGE-L against numbers by hand; METEOR is nltk's own where nltk has its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

from foveate.errors import MissingPackage
from foveate.evaluate.overlap import overlap_score, rouge_l


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
    assert rouge_l().of(answer, reference) == pytest.approx(score)
    assert rouge_l().of(reference, answer) == pytest.approx(score)


def test_words_are_numbers_letters_and_signs():
    assert rouge_l().of("There are 10 Objects, größer!", "there are 10 objects , größer !") == 1
    assert rouge_l().of("größer", "gr er") == 0


def test_without_rouge_score_the_refusal_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingPackage, match=r"foveate\[eval\]"):
        rouge_l()


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


@pytest.mark.parametrize("error", [LookupError("Resource wordnet not found"), OSError("No such file: 'wordnet/lexnames'")])
def test_without_wordnet_the_score_has_another_name(monkeypatch, error):
    def missing(*_):
        raise error

    import_module("rouge_score.rouge_scorer")  # with the real nltk
    fake_nltk(monkeypatch, missing)
    assert overlap_score().name == "rouge_l" and overlap_score().of("a", "a") == 1.0


LEXNAMES = "".join(f"{number:02d}\tnoun.some{number}\t1\n" for number in range(45))
SYNSET = "06 n 02 car 0 auto 0 000 | a motor vehicle"


def stand_in_data(folder):
    """nltk data of one synset, `car` and `auto`, and of a sentence splitter that knows no abbreviation."""
    wordnet, punkt = folder / "corpora" / "wordnet", folder / "tokenizers" / "punkt_tab" / "english"
    wordnet.mkdir(parents=True)
    punkt.mkdir(parents=True)
    header = "  1 WordNet 3.0 Copyright\n"
    for part in ("adj", "adv", "noun", "verb"):
        (wordnet / f"index.{part}").write_text(header)
        (wordnet / f"data.{part}").write_text(header)
        (wordnet / f"{part}.exc").write_text("")
    offset = f"{len(header):08d}"
    (wordnet / "data.noun").write_text(f"{header}{offset} {SYNSET}\n")
    (wordnet / "index.noun").write_text(f"{header}auto n 1 0 1 0 {offset}\ncar n 1 0 1 0 {offset}\n")
    (wordnet / "lexnames").write_text(LEXNAMES)
    for name in ("cntlist.rev", "index.sense"):
        (wordnet / name).write_text("")
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")


def test_meteor_through_nltk_s_own_code_by_hand(tmp_path):
    stand_in_data(tmp_path)
    # Words match exactly, by stem, by synonym; a sentence ends inside; the last pair is in another order.
    pairs = [
        ("a red auto parks.", "a red car parked."),
        ("no car. a sign", "no car. a sign"),
        ("a bus", "the car"),
        ("car the", "the car"),
        ("a car", "a car stops here"),
    ]
    script = (
        "import json, sys; from foveate.evaluate.overlap import overlap_score; score = overlap_score();"
        "print(json.dumps([score.name, *[score.of(*pair) for pair in json.loads(sys.argv[1])]]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(pairs)],
        env={**os.environ, "NLTK_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    name, *scores = json.loads(run.stdout)

    def meteor(matches, said, wanted, chunks):  # Lavie and Agarwal (2007): alpha 0.9, beta 3, gamma 0.5
        precision, recall = matches / said, matches / wanted
        return precision * recall / (0.9 * precision + 0.1 * recall) * (1 - 0.5 * (chunks / matches) ** 3)

    assert name == "meteor"
    assert scores == pytest.approx([meteor(5, 5, 5, 1), meteor(5, 5, 5, 1), 0, meteor(2, 2, 2, 2), meteor(2, 2, 4, 1)])
