"""One training or test sample: a picture, its pixels, questions, caption and, on request, patch labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from foveate.demo.drawing import Labels, Pixels, Tags, patch_labels, picture_tags, render
from foveate.demo.questions import TASK_WEIGHTS, Question, make_caption, make_questions
from foveate.demo.scenes import MAX_OBJECTS, Picture, Split, make_dense_scene, make_picture, picture_random

QUESTIONS_PER_PICTURE = 12


@dataclass(frozen=True)
class Sample:
    """A picture with its questions and its caption; pixels are drawn when first read."""

    picture: Picture
    questions: tuple[Question, ...]
    caption: Question

    @cached_property
    def pixels(self) -> Pixels:
        """The drawn picture, [96, 96, 3]."""
        return np.asarray(render(self.picture))

    def labels(self) -> Labels:
        """Return the patch labels, [2, patches]."""
        return patch_labels(self.picture)

    def tags(self) -> Tags:
        """Return the tags of the class token, [tags]."""
        return picture_tags(self.picture)


def make_sample(
    split: Split,
    seed: int,
    index: int,
    *,
    max_objects: int = MAX_OBJECTS,
    question_limit: int = QUESTIONS_PER_PICTURE,
    weights: Mapping[str, float] = TASK_WEIGHTS,
) -> Sample:
    """Return sample `index` of a split; the same arguments always give the same sample."""
    return _finish(make_picture(split, seed, index, max_objects), split, seed, index, question_limit, weights)


def make_dense_sample(split: Split, seed: int, index: int) -> Sample:
    """Return a crowded scene without questions, for the vision warm-up."""
    return _finish(make_dense_scene(split, seed, index), split, seed, index, 0)


def _finish(
    picture: Picture,
    split: Split,
    seed: int,
    index: int,
    question_limit: int,
    weights: Mapping[str, float] = TASK_WEIGHTS,
) -> Sample:
    rng = picture_random(split, seed, index, "questions")
    questions = make_questions(picture, rng, question_limit, weights) if question_limit else ()
    return Sample(picture, questions, make_caption(picture, rng))
