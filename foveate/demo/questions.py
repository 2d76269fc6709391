"""Short questions and answers about one demo picture.

Every reference ("the large star") fits exactly one object of the scene and never names the attribute that is asked for,
so an answer cannot be read off the question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from foveate.demo.pages import SIDE, Page
from foveate.demo.pictures import COLOR_NAMES, GROUND_COLUMNS, SHAPES, TINY, Chart, Picture, Scene, SceneObject, Sign

SINGLE_TASKS = ("color", "shape", "size", "position", "relation", "exist", "count", "chart_value", "chart_compare", "ocr")
# What is asked of a detailed world beside those; all but the grid cell need more pixels than a shrunk picture has.
DETAIL_TASKS = ("ground", "tiny", "small_text", "page", "table", "dense_chart")

PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": ("what color is the {}?", "which color does the {} have?", "what is the color of the {}?"),
    "shape": ("what shape is the {}?", "which shape does the {} have?", "what is the shape of the {}?"),
    "size": ("is the {} small or large?", "what size is the {}?", "how big is the {}?"),
    "position": ("where is the {}?", "in which part of the image is the {}?"),
    "exist": ("is there {}?", "do you see {}?"),
    "relation": ("is the {} {} or {} of the {}?", "is the {} to the {} or to the {} of the {}?"),
    "height": ("is the {} {} or {} the {}?",),
    "count": ("how many {} are there?", "how many {} do you see?"),
    "value": ("what is the value of the {} bar?", "how tall is the {} bar?"),
    "extreme": ("which bar is the {}?", "what color is the {} bar?"),
    "relative": ("is the {} bar taller or shorter than the {} bar?",),
    "ocr": ("spell the word.", "what does the sign say?"),
    "ground": ("in which grid cell is the {}?", "which grid cell holds the {}?"),
    "page": ("what is the {}?", "what does the page say for {}?", "read the {} line."),
    "table": ("what is in row {}, column {}?", "what is the {} in column {}?"),
    "dense_chart": ("what is the value of bar {}?", "how tall is bar {}?"),
    "small_text": ("spell the small {} word.", "what does the small {} word say?"),
    "ocr_place": ("spell the {} word.", "what does the {} word say?"),
}
# What binds two attributes of an object is learnt late; it gets more questions.
TASK_WEIGHTS = {"color": 1.2, "shape": 0.8, "size": 1.2, "position": 1.8, "relation": 1.2, "exist": 1.8, "count": 1.3}
DETAIL_TASK_WEIGHTS = {**TASK_WEIGHTS, "ground": 1.8}
SPARSE_TASK_WEIGHTS = {"tiny": 3.0, "ground": 1.0}  # of scenes with tiny objects
GROUND_CLEARANCE = 1.0  # units between a centre and the line to the next grid cell
FEWEST_RELATION_UNITS = 0.12 * SIDE  # closer than this, left and right are a matter of taste
PAIR_SHARE = 0.65  # of the existence questions that name a colour and a shape
NEAR_MISS_SHARE = 0.8  # of their "no" answers that share one attribute with an object
PRESENT_SHARE = 0.85  # of the counts that ask for something present
TRIALS_PER_QUESTION = 4


@dataclass(frozen=True)
class Question:
    """One question with its only correct answer; `earlier` are the (question, answer) turns before it."""

    task: str
    text: str
    answer: str
    earlier: tuple[tuple[str, str], ...] = ()


def make_questions(
    picture: Picture, rng: random.Random, limit: int, weights: Mapping[str, float] = TASK_WEIGHTS
) -> tuple[Question, ...]:
    """Return up to `limit` different questions; a picture with little in it has fewer. Tasks are drawn by `weights`."""
    if isinstance(picture, Chart):
        return _chart_questions(picture, rng)[:limit]
    if isinstance(picture, Sign):
        return _sign_questions(picture, rng)[:limit]
    if isinstance(picture, Page):
        facts = rng.sample(picture.facts, len(picture.facts))
        return tuple(ask(picture.kind, picture.kind, fact.answer, rng, *fact.asked) for fact in facts[:limit])
    if any(item.size == TINY for item in picture.objects):
        weights = SPARSE_TASK_WEIGHTS
    found: dict[str, Question] = {}
    for task in rng.choices(list(weights), list(weights.values()), k=limit * TRIALS_PER_QUESTION):
        question = _MAKERS[task](picture, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == limit:
            break
    return tuple(found.values())


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


def ask(task: str, kind: str, answer: str, rng: random.Random, *parts: str) -> Question:
    """Return a question in one of the phrasings of `kind`, with `parts` filled in."""
    return Question(task, rng.choice(PHRASINGS[kind]).format(*parts), answer)


def _attribute_question(task: str, attribute: str) -> Callable[[Scene, random.Random], Question | None]:
    def make(scene: Scene, rng: random.Random) -> Question | None:
        target = rng.choice(scene.objects)
        options = references(scene, target, task)
        if not options:
            return None
        return ask(task, task, getattr(target, attribute), rng, rng.choice(options))

    return make


def _tiny_question(scene: Scene, rng: random.Random) -> Question | None:
    """Colour or shape of an object that a smaller picture no longer shows."""
    target = rng.choice([item for item in scene.objects if item.size == TINY])
    attribute = rng.choice(("color", "shape"))
    options = [text for text in references(scene, target, attribute) if text.startswith(TINY)]
    if not options:
        return None
    return ask("tiny", attribute, getattr(target, attribute), rng, rng.choice(options))


def _ground_question(scene: Scene, rng: random.Random) -> Question | None:
    """The cell of an 8 x 8 grid, columns lettered and rows numbered."""
    target = rng.choice(scene.objects)
    options = references(scene, target, "position")
    cell = SIDE / len(GROUND_COLUMNS)
    is_clear = all(GROUND_CLEARANCE < v % cell < cell - GROUND_CLEARANCE for v in (target.x, target.y))
    if not options or not is_clear:
        return None
    return ask("ground", "ground", target.ground, rng, rng.choice(options))


def _relation_question(scene: Scene, rng: random.Random) -> Question | None:
    """Left or right, above or below; the places of the objects are not named."""
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, 2)
    is_sideways = rng.random() < 0.5
    distance = first.x - second.x if is_sideways else first.y - second.y
    one, other = references(scene, first, "position"), references(scene, second, "position")
    if abs(distance) < FEWEST_RELATION_UNITS or not one or not other:
        return None
    words = ["left", "right"] if is_sideways else ["above", "below"]
    answer = words[distance > 0]
    rng.shuffle(words)
    return ask("relation", "relation" if is_sideways else "height", answer, rng, rng.choice(one), *words, rng.choice(other))


def _exist_question(scene: Scene, rng: random.Random) -> Question | None:
    """Half "yes", half "no", decided before anything else so that no wording gives the answer away."""
    is_present = rng.random() < 0.5
    style = rng.random()
    thing: str | None
    if style < PAIR_SHARE:
        thing = _pair(scene, rng, is_present)
    elif style < (1 + PAIR_SHARE) / 2:
        color = choose({item.color for item in scene.objects}, COLOR_NAMES, is_present, rng)
        thing = color and f"{color} object"
    else:
        thing = choose({item.shape for item in scene.objects}, SHAPES, is_present, rng)
    if not thing:
        return None
    article = "an" if thing.startswith("orange") else "a"
    return ask("exist", "exist", "yes" if is_present else "no", rng, f"{article} {thing}")


def choose(present: set[str], names: tuple[str, ...], is_present: bool, rng: random.Random) -> str | None:
    """Return one of `names` that is present, or one that is not; None if there is none."""
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
        what, count = plural(shape), sum(other.shape == shape for other in scene.objects)
    else:
        what, count = f"{item.size} objects", sum(other.size == item.size for other in scene.objects)
    return ask("count", "count", str(count), rng, what)


def plural(shape: str) -> str:
    """Return the plural of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _chart_questions(chart: Chart, rng: random.Random) -> tuple[Question, ...]:
    questions = [ask("chart_value", "value", str(bar.value), rng, bar.color) for bar in chart.bars]
    values = [bar.value for bar in chart.bars]
    for word, extreme in (("tallest", max(values)), ("shortest", min(values))):
        if values.count(extreme) == 1:
            answer = chart.bars[values.index(extreme)].color
            questions.append(ask("chart_compare", "extreme", answer, rng, word))
    for _ in range(2):
        first, second = rng.sample(chart.bars, 2)
        if first.value != second.value:
            answer = "taller" if first.value > second.value else "shorter"
            questions.append(ask("chart_compare", "relative", answer, rng, first.color, second.color))
    questions.append(ask("count", "count", str(len(chart.bars)), rng, "bars"))
    rng.shuffle(questions)
    return tuple({question.text: question for question in questions}.values())


def _sign_questions(sign: Sign, rng: random.Random) -> tuple[Question, ...]:
    """One letter per token: the answer is spelt with spaces between the letters."""
    if len(sign.words) == 1:
        return (ask("ocr", "ocr", spelt(sign.words[0].text), rng),)
    questions = []
    for word, place in zip(sign.words, ("top", "bottom"), strict=True):
        questions += [ask("ocr", "ocr_place", spelt(word.text), rng, name) for name in (place, word.color)]
    rng.shuffle(questions)
    return tuple(questions)


def spelt(word: str) -> str:
    """Return the letters of a word with spaces between them."""
    return " ".join(word)


_MAKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "color": _attribute_question("color", "color"),
    "shape": _attribute_question("shape", "shape"),
    "size": _attribute_question("size", "size"),
    "position": _attribute_question("position", "cell"),
    "relation": _relation_question,
    "exist": _exist_question,
    "count": _count_question,
    "ground": _ground_question,
    "tiny": _tiny_question,
}
