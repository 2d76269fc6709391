"""Questions, answers and captions about a demo picture.

Every reference ("the large star") fits exactly one object of the scene and never names the attribute that is asked for,
so an answer cannot be read off the question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from foveate.demo.scenes import COLOR_NAMES, SHAPES, Chart, Picture, Scene, SceneObject

TASKS = ("color", "shape", "size", "position", "exist", "count", "chart_value", "chart_compare")
CAPTION = "caption"

PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": ("what color is the {}?", "which color does the {} have?", "what is the color of the {}?"),
    "shape": ("what shape is the {}?", "which shape does the {} have?", "what is the shape of the {}?"),
    "size": ("is the {} small or large?", "what size is the {}?", "how big is the {}?"),
    "position": ("where is the {}?", "in which part of the image is the {}?"),
    "exist": ("is there {}?", "do you see {}?"),
    "count": ("how many {} are there?", "how many {} do you see?"),
    "value": ("what is the value of the {} bar?", "how tall is the {} bar?"),
    "extreme": ("which bar is the {}?", "what color is the {} bar?"),
    "relative": ("is the {} bar taller or shorter than the {} bar?",),
    CAPTION: ("describe the image in detail.", "describe the image.", "what do you see?"),
}
# Existence is learnt latest, size and position late; they get more questions.
TASK_WEIGHTS = {"color": 1.0, "shape": 1.0, "size": 1.5, "position": 1.5, "exist": 2.0, "count": 1.0}
# Where things are is learnt last of all: the end of training asks mostly for that.
LATE_TASK_WEIGHTS = TASK_WEIGHTS | {"position": 6.0}
PAIR_SHARE = 0.65  # of the existence questions that name a colour and a shape
NEAR_MISS_SHARE = 0.8  # of their "no" answers that share one attribute with an object
PRESENT_SHARE = 0.85  # of the counts that ask for something present
TRIALS_PER_QUESTION = 4


@dataclass(frozen=True)
class Question:
    """One question with its only correct answer."""

    task: str
    text: str
    answer: str


def make_questions(
    picture: Picture, rng: random.Random, limit: int, weights: Mapping[str, float] = TASK_WEIGHTS
) -> tuple[Question, ...]:
    """Return up to `limit` different questions; a picture with little in it has fewer. Tasks are drawn by `weights`."""
    if isinstance(picture, Chart):
        return _chart_questions(picture, rng)[:limit]
    found: dict[str, Question] = {}
    for task in rng.choices(list(weights), list(weights.values()), k=limit * TRIALS_PER_QUESTION):
        question = _MAKERS[task](picture, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == limit:
            break
    return tuple(found.values())


def make_caption(picture: Picture, rng: random.Random) -> Question:
    """Return the caption: every object with size, colour, shape and place, or every bar with its value."""
    if isinstance(picture, Chart):
        parts = [f"a bar chart with {len(picture.bars)} bars."]
        parts += [f"the {bar.color} bar is {bar.value}." for bar in picture.bars]
    else:
        count = len(picture.objects)
        parts = [f"there {'is' if count == 1 else 'are'} {count} object{'' if count == 1 else 's'}."]
        parts += [f"a {item.size} {item.color} {item.shape} at the {item.cell}." for item in picture.objects]
    return Question(CAPTION, rng.choice(PHRASINGS[CAPTION]), " ".join(parts))


def references(scene: Scene, target: SceneObject, hidden: str) -> list[str]:
    """Return the descriptions that fit only `target` and do not use the attribute `hidden`.

    Args:
        scene: the scene that holds the object.
        target: the object to describe.
        hidden: "color", "shape", "size" or "position".
    """
    options = [
        (("shape",), target.shape),
        (("color",), f"{target.color} object"),
        (("color", "shape"), f"{target.color} {target.shape}"),
        (("size", "shape"), f"{target.size} {target.shape}"),
        (("size", "color"), f"{target.size} {target.color} object"),
        (("cell",), f"object at the {target.cell}"),
    ]
    hidden_field = "cell" if hidden == "position" else hidden
    return [text for fields, text in options if hidden_field not in fields and _is_unique(scene, target, fields)]


def _is_unique(scene: Scene, target: SceneObject, fields: tuple[str, ...]) -> bool:
    wanted = [getattr(target, name) for name in fields]
    return sum([getattr(item, name) for name in fields] == wanted for item in scene.objects) == 1


def _ask(task: str, kind: str, answer: str, rng: random.Random, *parts: str) -> Question:
    return Question(task, rng.choice(PHRASINGS[kind]).format(*parts), answer)


def _attribute_question(task: str, attribute: str) -> Callable[[Scene, random.Random], Question | None]:
    def make(scene: Scene, rng: random.Random) -> Question | None:
        target = rng.choice(scene.objects)
        options = references(scene, target, task)
        if not options:
            return None
        return _ask(task, task, getattr(target, attribute), rng, rng.choice(options))

    return make


def _exist_question(scene: Scene, rng: random.Random) -> Question | None:
    """Half "yes", half "no", decided before anything else so that no wording gives the answer away."""
    is_present = rng.random() < 0.5
    style = rng.random()
    thing: str | None
    if style < PAIR_SHARE:
        thing = _pair(scene, rng, is_present)
    elif style < (1 + PAIR_SHARE) / 2:
        color = _choose({item.color for item in scene.objects}, COLOR_NAMES, is_present, rng)
        thing = color and f"{color} object"
    else:
        thing = _choose({item.shape for item in scene.objects}, SHAPES, is_present, rng)
    if not thing:
        return None
    article = "an" if thing.startswith("orange") else "a"
    return _ask("exist", "exist", "yes" if is_present else "no", rng, f"{article} {thing}")


def _choose(present: set[str], names: tuple[str, ...], is_present: bool, rng: random.Random) -> str | None:
    options = [name for name in names if (name in present) == is_present]
    return rng.choice(options) if options else None


def _pair(scene: Scene, rng: random.Random, is_present: bool) -> str:
    item = rng.choice(scene.objects)
    if is_present:
        return f"{item.color} {item.shape}"
    present = {(other.color, other.shape) for other in scene.objects}
    pairs = [(color, shape) for color in COLOR_NAMES for shape in SHAPES if (color, shape) not in present]
    if rng.random() < NEAR_MISS_SHARE:
        shared = rng.randrange(2)
        wanted = (item.color, item.shape)[shared]
        pairs = [pair for pair in pairs if pair[shared] == wanted] or pairs
    return " ".join(rng.choice(pairs))


def _count_question(scene: Scene, rng: random.Random) -> Question | None:
    item = rng.choice(scene.objects)
    is_present = rng.random() < PRESENT_SHARE
    style = rng.random()
    if style < 0.15:
        what, count = "objects", len(scene.objects)
    elif style < 0.5:
        color = item.color if is_present else rng.choice(COLOR_NAMES)
        what, count = f"{color} objects", sum(other.color == color for other in scene.objects)
    elif style < 0.85:
        shape = item.shape if is_present else rng.choice(SHAPES)
        what, count = _plural(shape), sum(other.shape == shape for other in scene.objects)
    else:
        what, count = f"{item.size} objects", sum(other.size == item.size for other in scene.objects)
    return _ask("count", "count", str(count), rng, what)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _chart_questions(chart: Chart, rng: random.Random) -> tuple[Question, ...]:
    questions = [_ask("chart_value", "value", str(bar.value), rng, bar.color) for bar in chart.bars]
    values = [bar.value for bar in chart.bars]
    for word, extreme in (("tallest", max(values)), ("shortest", min(values))):
        if values.count(extreme) == 1:
            answer = chart.bars[values.index(extreme)].color
            questions.append(_ask("chart_compare", "extreme", answer, rng, word))
    for _ in range(2):
        first, second = rng.sample(chart.bars, 2)
        if first.value != second.value:
            answer = "taller" if first.value > second.value else "shorter"
            questions.append(_ask("chart_compare", "relative", answer, rng, first.color, second.color))
    questions.append(_ask("count", "count", str(len(chart.bars)), rng, "bars"))
    rng.shuffle(questions)
    return tuple({question.text: question for question in questions}.values())


_MAKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "color": _attribute_question("color", "color"),
    "shape": _attribute_question("shape", "shape"),
    "size": _attribute_question("size", "size"),
    "position": _attribute_question("position", "cell"),
    "exist": _exist_question,
    "count": _count_question,
}
