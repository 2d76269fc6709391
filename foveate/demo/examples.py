"""Makes the bundled example pictures: one per task, from a split that is used for nothing else."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from foveate.demo.drawing import render
from foveate.demo.questions import Question
from foveate.demo.samples import Sample, make_sample
from foveate.demo.scenes import Scene

EXAMPLE_TASKS = ("color", "shape", "size", "position", "exist", "chart_value")
EXAMPLE_OBJECTS = range(4, 8)  # enough to need looking, few enough to see at a glance


def make_examples(folder: Path, seed: int = 0) -> None:
    """Write the example pictures as PNG and `examples.json` beside them; the same seed writes the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    first_unused = 0
    for task in EXAMPLE_TASKS:
        index, sample, question = _first_example(task, first_unused, seed)
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


def _first_example(task: str, start: int, seed: int) -> tuple[int, Sample, Question]:
    for index in count(start):
        sample = make_sample("examples", seed, index)
        if isinstance(sample.picture, Scene) and len(sample.picture.objects) not in EXAMPLE_OBJECTS:
            continue
        for question in sample.questions:
            if question.task == task:
                return index, sample, question
    raise AssertionError("the split is endless")
