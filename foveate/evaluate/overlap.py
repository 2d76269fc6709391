"""How much of a reference answer an answer says: METEOR where nltk has its data, else ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from foveate.errors import MissingPackage

METEOR_NEEDS = "METEOR needs nltk's data: python -m nltk.downloader punkt_tab wordnet"


@dataclass(frozen=True)
class OverlapScore:
    """A score under its own name. `of(answer, reference)` is between 0 and 1, larger is better."""

    name: str
    of: Callable[[str, str], float]


def overlap_score() -> OverlapScore:
    """METEOR as nltk computes it, on nltk's words, as the paper does; ROUGE-L if nltk, its words or WordNet are missing.

    nltk looks for the synonyms of stems, so fewer words match than in the METEOR of Lavie and Agarwal (2007): Porter's stem of
    "large" is "larg", which WordNet does not know.

    Raises:
        MissingPackage: without both.
    """
    return meteor() or rouge_l()


def meteor() -> OverlapScore | None:
    """METEOR as `overlap_score` says, None if nltk, its words or WordNet are missing."""
    try:
        tokenize = import_module("nltk").word_tokenize
        single = import_module("nltk.translate.meteor_score").single_meteor_score
        single(tokenize("a word"), tokenize("one word"))  # reads WordNet
    except (ImportError, LookupError, OSError):  # data that was not downloaded, or lacks one of its files
        return None
    return OverlapScore("meteor", lambda answer, reference: float(single(tokenize(reference), tokenize(answer))))


def rouge_l() -> OverlapScore:
    """F1 of the longest common subsequence of words (Lin, 2004, ROUGE-L with beta = 1), by rouge-score; 0 if they share none.

    Raises:
        MissingPackage: without rouge-score.
    """
    try:
        scorer = import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=_Words())
    except ImportError:
        raise MissingPackage("the overlap of answers needs rouge-score: pip install 'foveate[eval]'") from None
    return OverlapScore("rouge_l", lambda answer, reference: float(scorer.score(reference, answer)["rougeL"].fmeasure))


class _Words:
    """rouge-score's own tokenizer drops signs, and letters that English does not have."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-cased words and numbers; every other visible character alone."""
        return re.findall(r"\w+|[^\w\s]", text.lower())
