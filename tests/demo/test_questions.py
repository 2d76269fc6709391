from __future__ import annotations

import re
from collections import Counter

from foveate.demo.long_answers import CAPTION, LONG_TASKS, ORDINALS
from foveate.demo.pictures import COLOR_NAMES, SHAPES, SIZES, Chart, Scene, SceneObject, Sign
from foveate.demo.questions import PHRASINGS, SINGLE_TASKS, Question
from foveate.demo.samples import Sample, make_sample
from foveate.demo.scenes import make_clip

SAMPLES = [make_sample("train", 11, index) for index in range(1500)]
SCENES = [sample for sample in SAMPLES if isinstance(sample.picture, Scene)]
SIGNS = [sample for sample in SAMPLES if isinstance(sample.picture, Sign)]
CHARTS = [sample for sample in SAMPLES if isinstance(sample.picture, Chart)]
ATTRIBUTES = {"color": "color", "shape": "shape", "size": "size", "position": "cell"}


def reference_of(question: Question, kind: str) -> tuple[str, ...]:
    for phrasing in sorted(PHRASINGS[kind], key=len, reverse=True):
        match = re.fullmatch(re.escape(phrasing).replace(r"\{\}", "(.+)"), question.text)
        if match:
            return match.groups()
    raise AssertionError(f"no phrasing of {kind} fits {question.text!r}")


def matching(scene: Scene, reference: str) -> list[SceneObject]:
    """The objects that a description fits, read independently of how it was made."""
    words, _, place = reference.partition(" at the ")
    named = words.split()
    found = []
    for item in scene.objects:
        facts = {item.color, item.shape, item.size, "object"}
        if all(word in facts for word in named) and (not place or item.cell == place):
            found.append(item)
    return found


def asked(samples: list[Sample], task: str) -> list[tuple[Sample, Question]]:
    return [(sample, question) for sample in samples for question in sample.questions if question.task == task]


def test_references_are_unique_and_answers_true() -> None:
    for task, attribute in ATTRIBUTES.items():
        pairs = asked(SCENES, task)
        assert len(pairs) > 500
        for sample, question in pairs:
            targets = matching(sample.picture, *reference_of(question, task))
            assert len(targets) == 1, question
            assert getattr(targets[0], attribute) == question.answer


def test_references_never_name_the_asked_attribute() -> None:
    forbidden = {"color": COLOR_NAMES, "shape": SHAPES, "size": SIZES, "position": ("at the",)}
    for task, words in forbidden.items():
        for _, question in asked(SCENES, task):
            reference = reference_of(question, task)[0]
            assert not any(word in reference for word in words), question


def test_existence_answers_are_true_and_balanced() -> None:
    answers: Counter[str] = Counter()
    for sample, question in asked(SCENES, "exist"):
        thing = reference_of(question, "exist")[0].removeprefix("an ").removeprefix("a ")
        assert question.answer == ("yes" if matching(sample.picture, thing) else "no"), question
        answers[question.answer] += 1
    assert 0.46 < answers["yes"] / answers.total() < 0.54


def test_half_of_the_no_answers_are_near_misses() -> None:
    near = total = 0
    for sample, question in asked(SCENES, "exist"):
        if question.answer == "no":
            words = question.text.removesuffix("?").split()[-2:]
            facts = {fact for item in sample.picture.objects for fact in (item.color, item.shape)}
            near += any(word in facts for word in words)
            total += 1
    assert near / total >= 0.5


def test_counts_are_true() -> None:
    for sample, question in asked(SCENES, "count"):
        thing = reference_of(question, "count")[0]
        singular = thing.removesuffix("es") if thing.endswith("sses") else thing.removesuffix("s")
        assert int(question.answer) == len(matching(sample.picture, singular)), question


def test_chart_answers_are_true() -> None:
    for sample in CHARTS:
        values = {bar.color: bar.value for bar in sample.picture.bars}
        for question in sample.questions:
            named = [word for word in re.findall("[a-z]+", question.text) if word in values]
            if question.task == "chart_value":
                assert values[named[0]] == int(question.answer)
            elif question.task == "count":
                assert len(values) == int(question.answer)
            elif named:
                assert ("taller" if values[named[0]] > values[named[1]] else "shorter") == question.answer
            else:
                extreme = max if "tallest" in question.text else min
                assert [c for c, v in values.items() if v == extreme(values.values())] == [question.answer]


def test_captions_name_every_object() -> None:
    for sample in SCENES[:200]:
        assert sample.caption.task == CAPTION
        for item in sample.picture.objects:
            assert f"a {item.size} {item.color} {item.shape} at the {item.cell}." in sample.caption.answer


def test_every_task_is_asked_in_every_wording_without_repeats() -> None:
    tasks = Counter(question.task for sample in SAMPLES for question in sample.questions)
    assert set(tasks) == set(SINGLE_TASKS)
    for kind in ATTRIBUTES:
        texts = [question.text for _, question in asked(SCENES, kind)]
        for phrasing in PHRASINGS[kind]:
            start, _, end = phrasing.partition("{}")
            assert any(text.startswith(start) and text.endswith(end) for text in texts)
    for sample in SAMPLES:
        assert len({question.text for question in sample.questions}) == len(sample.questions)


def test_relations_are_true_and_balanced() -> None:
    answers: Counter[str] = Counter()
    for sample, question in asked(SCENES, "relation"):
        kind = "height" if question.answer in ("above", "below") else "relation"
        first, *_, second = reference_of(question, kind)
        (a,), (b,) = matching(sample.picture, first), matching(sample.picture, second)
        distance = b.x - a.x if kind == "relation" else b.y - a.y
        assert (question.answer in ("left", "above")) == (distance > 10), question
        answers[question.answer] += 1
    assert answers.total() > 500
    assert all(0.2 < count / answers.total() < 0.3 for count in answers.values())


def test_signs_are_spelt_letter_by_letter() -> None:
    assert len(SIGNS) > 200
    for sample in SIGNS:
        words = sample.picture.words
        names = {word.color: word.text for word in words} | {"top": words[0].text, "bottom": words[-1].text}
        for question in sample.questions:
            named = [word for word in question.text.split() if word in names]
            assert question.answer.replace(" ", "") == (names[named[0]] if named else words[0].text)


def test_questions_about_two_pictures_are_true_and_balanced() -> None:
    answers: Counter[str] = Counter()
    for index in range(400):
        sample = make_sample("train", 11, index, kind="pair")
        for question in sample.questions:
            answers[question.answer] += 1
            thing = re.sub(r"^(do both images have|which image has) (more|an?) ", "", question.text.removesuffix("?"))
            if " more " in question.text:
                thing = thing.removesuffix("es" if thing.endswith("sses") else "s")
            counts = [len(matching(scene, thing)) for scene in sample.pictures]
            if question.text.startswith("do both"):
                assert question.answer == ("yes" if all(counts) else "no"), question
            else:
                assert counts[["first", "second"].index(question.answer)] == max(counts) > min(counts), question
    assert abs(answers["first"] - answers["second"]) < 0.1 * answers.total()
    assert abs(answers["yes"] - answers["no"]) < 0.1 * answers.total()


def test_clip_answers_are_true() -> None:
    for index in range(200):
        clip, sample = make_clip("train", 11, index), make_sample("train", 11, index, kind="clip")
        thing = f"{clip.mover.color} {clip.mover.shape}"
        for question in sample.questions:
            if question.text == "which object moves?":
                assert question.answer == thing
            elif question.text == "what moves and where to?":
                assert question.answer == f"the {thing} moves {clip.direction}."
            elif question.answer in ("yes", "no"):
                assert (thing in question.text) == (question.answer == "yes")
            else:
                assert question.answer == clip.direction
                (target,) = matching(sample.pictures[0], re.findall("does the (.+) move", question.text)[0])
                assert target == clip.mover


def test_long_answers_are_true() -> None:
    seen: Counter[str] = Counter()
    for sample in SAMPLES:
        for question in sample.long_questions:
            seen[question.task] += 1
            check_long(sample, question)
    assert set(seen) == set(LONG_TASKS)
    assert min(seen.values()) > 200


def check_long(sample: Sample, question: Question) -> None:
    picture, words = sample.picture, re.findall(r"[a-z]+|\d+", question.answer)
    if question.task == "tally":
        totals = [int(number) for number in re.findall(r"total (\d+)", question.answer)]
        values = [bar.value for bar in picture.bars]
        assert totals == [sum(values[: i + 1]) for i in range(len(values))]
    elif question.task == "backwards":
        middle = words.index("backwards")
        assert words[:middle] == words[:middle:-1]
        assert len(words[:middle]) == len(picture.objects)
    elif question.task == "follow_up":
        ((_, listed),) = question.earlier
        place = ORDINALS.index(question.text.removesuffix("?").split()[-1])
        assert re.findall("[a-z]+", listed)[place] == question.answer
    elif question.task == "summary":
        lines, total = question.answer.split(" in total ")
        for count, name in re.findall(r"(\d+) ([a-z]+)", total):
            singular = name if name in (*SIZES, *SHAPES) else name.removesuffix("es" if name.endswith("sses") else "s")
            assert int(count) == len(re.findall(rf"\b{singular}\b", lines)), question
