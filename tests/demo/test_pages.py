from __future__ import annotations

import numpy as np
import pytest

from foveate.demo.drawing import render
from foveate.demo.pages import PAGE_KINDS, SIDE, Page
from foveate.demo.pictures import TINY, Scene
from foveate.demo.samples import make_sample

PICTURES = range(400)
PIXELS = 192
SCALE = PIXELS / SIDE


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    samples = [make_sample("train", 1, index, detailed=True) for index in PICTURES]
    found = [sample.picture for sample in samples if isinstance(sample.picture, Page)]
    assert {page.kind for page in found} == set(PAGE_KINDS)
    return found


def test_everything_lies_inside_the_picture(pages: list[Page]) -> None:
    for page in pages:
        boxes = [box for text in page.texts for box in text.letter_boxes()] + [block.box for block in page.blocks]
        assert all(x0 >= 0 and y0 >= 0 and x1 <= SIDE and y1 <= SIDE for x0, y0, x1, y1 in boxes), page.kind


def test_letters_are_drawn_where_their_boxes_say(pages: list[Page]) -> None:
    for page in pages[:40]:
        pixels = np.asarray(render(page, PIXELS)).astype(int)
        for text in page.texts:
            for box in text.letter_boxes():
                x0, y0, x1, y1 = (v * SCALE for v in box)
                inside = pixels[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1]
                distance = np.abs(inside - np.array(text.ink)).sum(-1)
                # Thin strokes between two pixels are half paper.
                contrast = np.abs(np.array(text.ink) - np.array(page.paper[1])).sum() if page.paper else 400
                assert distance.min() < 0.65 * contrast, (page.kind, text)


def test_no_two_texts_overlap(pages: list[Page]) -> None:
    for page in pages:
        boxes = [(text.letter_boxes()[0][0], text.top, text.letter_boxes()[-1][2], text.top + text.size) for text in page.texts]
        for i, (a0, b0, a1, b1) in enumerate(boxes):
            for c0, d0, c1, d1 in boxes[:i]:
                assert a1 < c0 or c1 < a0 or b1 < d0 + 0.3 * (d1 - d0) or d1 < b0 + 0.3 * (b1 - b0), page.kind


def test_bars_are_as_tall_as_the_answers(pages: list[Page]) -> None:
    for page in pages:
        if page.kind == "dense_chart":
            heights = np.array([block.box[3] - block.box[1] for block in page.blocks])
            values = np.array([int(fact.answer) for fact in page.facts])
            assert np.allclose(heights / values, heights[0] / values[0])


def test_no_question_of_a_page_has_two_answers(pages: list[Page]) -> None:
    for page in pages:
        assert len({fact.asked for fact in page.facts}) == len(page.facts)


def test_tiny_objects_are_asked_for_by_name() -> None:
    samples = [make_sample("train", 1, index, detailed=True) for index in PICTURES]
    sparse = [s for s in samples if isinstance(s.picture, Scene) and any(item.size == TINY for item in s.picture.objects)]
    assert len(sparse) > 15
    for sample in sparse:
        assert {question.task for question in sample.questions} <= {"tiny", "ground"}
        assert all(TINY in question.text for question in sample.questions if question.task == "tiny")


def test_a_grid_cell_holds_the_object() -> None:
    seen = 0
    for index in PICTURES:
        sample = make_sample("train", 1, index, detailed=True)
        for question in sample.questions:
            if question.task == "ground" and isinstance(sample.picture, Scene):
                column, row = question.answer.split()
                left, top = "abcdefgh".index(column) * SIDE / 8, (int(row) - 1) * SIDE / 8
                inside = [o for o in sample.picture.objects if left < o.x < left + SIDE / 8 and top < o.y < top + SIDE / 8]
                assert inside and any(
                    o.shape in question.text or o.color in question.text or "object at" in question.text for o in inside
                )
                seen += 1
    assert seen > 100
