"""Generated conversations: the same for everyone, alike within a block, of every task."""

from __future__ import annotations

from collections import Counter

import pytest

from foveate.demo.conversations import BLOCKS, EVERY_BLOCKS, DemoConversations
from foveate.demo.long_answers import LONG_TASKS
from foveate.demo.samples import TASKS


def test_a_row_is_one_question_with_its_answer():
    rows = DemoConversations(40, block=2)
    for index in (0, 9, 19):
        sample, question = rows.ask(index)
        messages = rows[index]
        assert messages == DemoConversations(100, block=2)[index]
        assert messages[-1] == {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
        shown = [part for part in messages[0]["content"] if part["type"] == "image"]
        assert len(shown) == len(sample.pictures) == {8: 2, 9: 2, 18: 4, 19: 4}.get(index, 1)
    with pytest.raises(IndexError):
        rows[40]


def test_every_task_is_asked_and_half_of_the_answers_are_long():
    rows = DemoConversations(1200, block=2)
    asked = Counter(rows.ask(index)[1].task for index in range(1200))
    assert set(asked) == set(TASKS)
    single = (EVERY_BLOCKS - len(BLOCKS)) / EVERY_BLOCKS
    assert sum(asked[task] for task in LONG_TASKS) / 1200 == pytest.approx(single / 2, abs=0.05)


def test_splits_and_seeds_differ_and_a_task_can_be_asked_for_alone():
    first = [DemoConversations(5, split, seed)[3] for split, seed in (("train", 2), ("validation", 2), ("train", 3))]
    texts = [str(messages[-1]) + str(messages[0]["content"][-1]) for messages in first]
    assert len(set(texts)) == 3
    rows = DemoConversations(20, only="tally")
    assert {rows.ask(index)[1].task for index in range(20)} == {"tally"}
