"""Tasks with long answers, most of which continue from what the answer itself said before.

Counting up, adding, repeating and referring back need earlier OUTPUT tokens, so they show what a method loses that drops
some of those.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from foveate.demo.pages import Page
from foveate.demo.pictures import SHAPES, SIZES, TINY, Chart, Picture, Scene
from foveate.demo.questions import Question, plural, spelt
from foveate.demo.tasks import CAPTION as CAPTION
from foveate.demo.tasks import LONG_TASKS as LONG_TASKS
from foveate.demo.tasks import TRANSCRIPT

# Asked in training in these proportions; a caption is the longest and would drown the others.
LONG_WEIGHTS = {CAPTION: 1.0, "summary": 0.7, "tally": 2.0, "backwards": 0.8, "follow_up": 1.5, TRANSCRIPT: 1.0}

CAPTION_PHRASINGS = ("describe the image in detail.", "describe the image.", "what do you see?")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
LONGEST_REPETITION = 6  # objects


def make_long_questions(picture: Picture, rng: random.Random) -> tuple[Question, ...]:
    """Return one question of each long task that fits the picture, the caption first; none for scenes of tiny objects."""
    if isinstance(picture, Page):
        return (Question(TRANSCRIPT, "read everything.", " ".join(fact.sentence for fact in picture.facts)),)
    if isinstance(picture, Scene) and any(item.size == TINY for item in picture.objects):
        return ()
    phrase = rng.choice(CAPTION_PHRASINGS)
    if isinstance(picture, Chart):
        bars = [f"the {bar.color} bar is {bar.value}." for bar in picture.bars]
        opening = f"a bar chart with {len(picture.bars)} bars."
        return Question(CAPTION, phrase, " ".join([opening, *bars])), _tally(picture)
    if isinstance(picture, Scene):
        found = [Question(CAPTION, phrase, " ".join([_count(picture), *_sentences(picture)])), _summary(picture)]
        if 2 <= len(picture.objects) <= LONGEST_REPETITION:
            found.append(_backwards(picture, rng))
        if 2 <= len(picture.objects) <= len(ORDINALS):
            found.append(_follow_up(picture, rng))
        return tuple(found)
    words = [f"the {word.color} word says {spelt(word.text)}." for word in picture.words]
    return (Question(CAPTION, phrase, " ".join(["a sign.", *words])),)


def _count(scene: Scene) -> str:
    count = len(scene.objects)
    return f"there {'is' if count == 1 else 'are'} {count} object{'' if count == 1 else 's'}."


def _sentences(scene: Scene) -> list[str]:
    return [f"a {item.size} {item.color} {item.shape} at the {item.cell}." for item in scene.objects]


def _summary(scene: Scene) -> Question:
    """The objects, numbered, and a last line that sums up the answer."""
    lines = [f"{i} a {item.size} {item.color} {item.shape}." for i, item in enumerate(scene.objects, start=1)]
    sizes = Counter(item.size for item in scene.objects)
    shapes = Counter(item.shape for item in scene.objects)
    parts = [f"{sizes[size]} {size}" for size in SIZES if sizes[size]]
    parts += [f"{shapes[shape]} {shape if shapes[shape] == 1 else plural(shape)}" for shape in SHAPES if shapes[shape]]
    return Question("summary", "number the objects and sum up.", " ".join([*lines, f"in total {', '.join(parts)}."]))


def _tally(chart: Chart) -> Question:
    """Running totals: each depends on the one before."""
    total, parts = 0, []
    for bar in chart.bars:
        total += bar.value
        parts.append(f"{bar.color} {bar.value}, total {total}.")
    return Question("tally", "add up the bars one by one.", " ".join(parts))


def _backwards(scene: Scene, rng: random.Random) -> Question:
    """A list, then the same list from its end."""
    name = rng.choice(("color", "shape"))
    names = _names(scene, name)
    answer = f"{', '.join(names)}. backwards {', '.join(reversed(names))}."
    return Question("backwards", f"list the {name}s, then list them backwards.", answer)


def _follow_up(scene: Scene, rng: random.Random) -> Question:
    """A second turn about the words of the first answer."""
    name = rng.choice(("color", "shape"))
    names = _names(scene, name)
    place = rng.randrange(len(names))
    listed = (f"list the {name}s.", f"{', '.join(names)}.")
    return Question("follow_up", f"which {name} did you name {ORDINALS[place]}?", names[place], (listed,))


def _names(scene: Scene, attribute: str) -> Sequence[str]:
    return [getattr(item, attribute) for item in scene.objects]
