"""How far one gets without looking: the most frequent answer to each exact question string."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from foveate.demo.questions import Question
from foveate.demo.samples import KINDS, make_sample

FEWEST_SIGHTINGS = 3  # a question string seen less often says less than its task does


class MajorityAnswers:
    """Answers with what was most frequent in training for the same question string, else for the same task."""

    def __init__(self, seen: Iterable[Question]) -> None:
        self._by_text: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_task: dict[str, Counter[str]] = defaultdict(Counter)
        for question in seen:
            self._by_text[question.text][question.answer] += 1
            self._by_task[question.task][question.answer] += 1

    def answer(self, question: Question) -> str:
        """Return the best guess for a question of a task that was seen."""
        counts = self._by_text.get(question.text)
        if counts is None or counts.total() < FEWEST_SIGHTINGS:
            counts = self._by_task[question.task]
        return counts.most_common(1)[0][0]


def majority_answers(seed: int, pictures: int) -> MajorityAnswers:
    """Return the guesser learnt from the first `pictures` samples of each kind of the training split."""
    return MajorityAnswers(
        question
        for kind in KINDS
        for index in range(pictures)
        for sample in [make_sample("train", seed, index, kind=kind)]
        for question in (*sample.questions, *sample.long_questions)
    )
