"""How much of a reference answer an answer says: METEOR where nltk and WordNet are installed, ROUGE-L anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

METEOR_NEEDS = "METEOR needs nltk and its data: pip install nltk, then python -m nltk.downloader punkt_tab wordnet"


@dataclass(frozen=True)
class OverlapScore:
    """A score under its own name. `of(answer, reference)` is between 0 and 1, larger is better."""

    name: str
    of: Callable[[str, str], float]


def overlap_score() -> OverlapScore:
    """METEOR as nltk computes it, on nltk's words, as the paper does; ROUGE-L if nltk, its words or WordNet are missing.

    nltk looks for the synonyms of stems, so fewer words match than in the METEOR of Lavie and Agarwal (2007): Porter's stem of
    "large" is "larg", which WordNet does not know.
    """
    try:
        tokenize = import_module("nltk").word_tokenize
        single = import_module("nltk.translate.meteor_score").single_meteor_score
        single(tokenize("a word"), tokenize("one word"))  # reads WordNet
    except (ImportError, LookupError, OSError):  # data that was not downloaded, or lacks one of its files
        return OverlapScore("rouge_l", rouge_l)

    def meteor(answer: str, reference: str) -> float:
        return float(single(tokenize(reference), tokenize(answer)))

    return OverlapScore("meteor", meteor)


def words(text: str) -> list[str]:
    """Lower-cased words and numbers; every other visible character alone."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004, ROUGE-L with beta = 1). 0 if they share none."""
    said, wanted = words(answer), words(reference)
    row = [0] * (len(wanted) + 1)
    for word in said:
        before = 0  # the row above, one place to the left
        for place, other in enumerate(wanted, start=1):
            above = row[place]
            row[place] = before + 1 if word == other else max(above, row[place - 1])
            before = above
    return 2 * row[-1] / (len(said) + len(wanted)) if row[-1] else 0.0
