"""One training or test sample: one or more pictures, their pixels and questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveate.demo.drawing import Pixels, render
from foveate.demo.long_answers import make_long_questions
from foveate.demo.pictures import MAX_OBJECTS, PICTURE_PIXELS, Picture, Split
from foveate.demo.questions import DETAIL_TASK_WEIGHTS, DETAIL_TASKS, SINGLE_TASKS, TASK_WEIGHTS, Question, make_questions
from foveate.demo.scenes import make_clip, make_pair, make_picture, picture_random
from foveate.demo.several import SEVERAL_TASKS, make_clip_questions, make_pair_questions
from foveate.demo.tasks import CAPTION, LONG_TASKS, TRANSCRIPT

QUESTIONS_PER_PICTURE = 12
QUESTIONS_PER_PAIR = 8
TASKS = (*SINGLE_TASKS, *SEVERAL_TASKS, *LONG_TASKS)
DETAILED_TASKS = (*SINGLE_TASKS, *DETAIL_TASKS, *SEVERAL_TASKS, *LONG_TASKS, TRANSCRIPT)

Kind = Literal["single", "pair", "clip"]
KINDS: tuple[Kind, ...] = ("single", "pair", "clip")
# Where the questions of a task come from.
KIND_OF_TASK: dict[str, Kind] = {
    **dict.fromkeys((*TASKS, *DETAIL_TASKS, TRANSCRIPT), "single"),
    "two_image": "pair",
    "video": "clip",
}


@dataclass(frozen=True)
class Sample:
    """Pictures with their short questions and the questions that have long answers."""

    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]
    long_questions: tuple[Question, ...] = ()

    def pixels(self, side: int = PICTURE_PIXELS) -> Pixels:
        """The drawn pictures, [pictures, side, side, 3]."""
        return np.stack([np.asarray(render(picture, side)) for picture in self.pictures])

    @property
    def picture(self) -> Picture:
        """The only picture, or the first."""
        return self.pictures[0]

    @property
    def caption(self) -> Question:
        """The request to describe the picture."""
        return next(question for question in self.long_questions if question.task == CAPTION)


def make_sample(
    split: Split,
    seed: int,
    index: int,
    *,
    kind: Kind = "single",
    max_objects: int = MAX_OBJECTS,
    question_limit: int = QUESTIONS_PER_PICTURE,
    weights: Mapping[str, float] | None = None,
    only: Literal["chart", "sign"] | None = None,
    detailed: bool = False,
) -> Sample:
    """Return sample `index` of a split; the same arguments always give the same sample. `only` is for single pictures.

    A detailed world has pages, tables and tiny objects too, and asks for places on a fine grid.
    """
    weights = weights or (DETAIL_TASK_WEIGHTS if detailed else TASK_WEIGHTS)
    rng = picture_random(split, seed, index, "questions" if kind == "single" else f"{kind} questions")
    if kind == "pair":
        scenes = make_pair(split, seed, index, detailed)
        return Sample(scenes, make_pair_questions(scenes, rng, min(question_limit, QUESTIONS_PER_PAIR)))
    if kind == "clip":
        clip = make_clip(split, seed, index, detailed)
        return Sample(clip.frames, make_clip_questions(clip, rng)[:question_limit])
    picture = make_picture(split, seed, index, max_objects, only, detailed)
    questions = make_questions(picture, rng, question_limit, weights) if question_limit else ()
    return Sample((picture,), questions, make_long_questions(picture, rng))
