"""Questions about two pictures, and about the frames of a short video."""

from __future__ import annotations

import random

from foveate.demo.pictures import COLOR_NAMES, SHAPES, Clip, Scene
from foveate.demo.questions import Question, choose, plural, references

SEVERAL_TASKS = ("two_image", "video")


def make_pair_questions(scenes: tuple[Scene, Scene], rng: random.Random, limit: int) -> tuple[Question, ...]:
    """Return up to `limit` different questions; "first" and "second" are equally often right."""
    found: dict[str, Question] = {}
    for _ in range(4 * limit):
        question = _which(scenes, rng) if rng.random() < 0.7 else _both(scenes, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == limit:
            break
    return tuple(found.values())


def _which(scenes: tuple[Scene, Scene], rng: random.Random) -> Question | None:
    style = rng.randrange(4)
    if style == 0:
        text, counts = "which image has more objects?", [len(scene.objects) for scene in scenes]
    else:
        item = rng.choice(rng.choice(scenes).objects)
        if style == 1:
            text = f"which image has more {item.color} objects?"
            counts = [sum(other.color == item.color for other in scene.objects) for scene in scenes]
        elif style == 2:
            text = f"which image has more {plural(item.shape)}?"
            counts = [sum(other.shape == item.shape for other in scene.objects) for scene in scenes]
        else:
            pair = item.color, item.shape
            text = f"which image has {_article(item.color)} {item.color} {item.shape}?"
            counts = [int(any((other.color, other.shape) == pair for other in scene.objects)) for scene in scenes]
    if counts[0] == counts[1]:
        return None
    return Question("two_image", text, "first" if counts[0] > counts[1] else "second")


def _both(scenes: tuple[Scene, Scene], rng: random.Random) -> Question | None:
    """Half "yes", half "no", decided first."""
    is_both = rng.random() < 0.5
    by_color = rng.random() < 0.5
    names = [{item.color if by_color else item.shape for item in scene.objects} for scene in scenes]
    thing = choose(names[0] & names[1], COLOR_NAMES if by_color else SHAPES, True, rng) if is_both else None
    if not is_both:
        only_one = names[0] ^ names[1]
        thing = choose(only_one, COLOR_NAMES if by_color else SHAPES, True, rng)
    if not thing:
        return None
    noun = f"{thing} object" if by_color else thing
    return Question("two_image", f"do both images have {_article(thing)} {noun}?", "yes" if is_both else "no")


def make_clip_questions(clip: Clip, rng: random.Random) -> tuple[Question, ...]:
    """Return questions about what moves and where to."""
    mover = clip.mover
    thing = f"{mover.color} {mover.shape}"
    names = references(clip.frames[0], clip.frames[0].objects[-1], "position")
    questions = [
        Question("video", f"which way does the {rng.choice(names)} move?", clip.direction),
        Question("video", "which object moves?", thing),
        Question("video", "what moves and where to?", f"the {thing} moves {clip.direction}."),
    ]
    still = clip.frames[0].objects[:-1]
    if still:
        item = rng.choice(still)
        questions.append(Question("video", f"does the {item.color} {item.shape} move?", "no"))
        questions.append(Question("video", f"does the {thing} move?", "yes"))
    rng.shuffle(questions)
    return tuple(questions)


def _article(word: str) -> str:
    return "an" if word.startswith("orange") else "a"
