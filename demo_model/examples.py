"""Makes the bundled example pictures: one per task, from a split that is used for nothing else.

They are chosen among the pictures that the shipped model answers correctly, so that what a plan loses can be seen; how often
it is right at all stands in the model card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from foveate.demo.drawing import render
from foveate.demo.pictures import Scene
from foveate.demo.questions import SINGLE_TASKS, Question
from foveate.demo.samples import Sample, make_sample
from foveate.errors import FoveateError

EXAMPLE_TASKS = SINGLE_TASKS
EXAMPLE_TRIALS = 500  # pictures looked at per task
EXAMPLE_OBJECTS = range(4, 8)  # enough to need looking, few enough to see at a glance


def make_examples(folder: Path, is_right: Callable[[Sample, Question], bool], seed: int = 0) -> None:
    """Write the example pictures as PNG and `examples.json` beside them.

    Args:
        folder: where to.
        is_right: whether the model answers a question correctly.
        seed: the same seed and model write the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    first_unused = 0
    for task in EXAMPLE_TASKS:
        index, sample, question = _first_example(task, first_unused, seed, is_right)
        first_unused = index + 1
        file = f"{task}.png"
        render(sample.picture).save(folder / file, optimize=True)
        entries.append(
            {
                "name": task,
                "file": file,
                "question": question.text,
                "answer": question.answer,
                "caption": sample.caption.answer,
                "index": index,
                "seed": seed,
            }
        )
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n")


def _first_example(
    task: str, start: int, seed: int, is_right: Callable[[Sample, Question], bool]
) -> tuple[int, Sample, Question]:
    for index in range(start, start + EXAMPLE_TRIALS):
        sample = make_sample("examples", seed, index)
        if isinstance(sample.picture, Scene) and len(sample.picture.objects) not in EXAMPLE_OBJECTS:
            continue
        for question in sample.questions:
            if question.task == task and is_right(sample, question):
                return index, sample, question
    raise FoveateError(f"none of {EXAMPLE_TRIALS} pictures has a question of the task {task} that the model answers")
