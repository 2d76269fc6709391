from __future__ import annotations

from demo_model.labels import BAR_CLASS, CENTRE_PART, FIRST_LETTER_CLASS, PATCH_WORDS, PatchLabels, picture_tags
from foveate.demo.pages import Page
from foveate.demo.pictures import COLORS, LETTERS, PATCH_PIXELS, Chart, Sign
from foveate.demo.samples import make_sample
from foveate.demo.scenes import make_dense_scene

PICTURES = range(300)
GRID = 12


def test_every_object_labels_the_patch_of_its_centre() -> None:
    for index in range(50):
        scene = make_dense_scene("train", 1, index)
        labels = PatchLabels(scene, GRID)
        classes, words = labels.classes.reshape(3, GRID, GRID), labels.words.reshape(GRID, GRID, -1)
        for item in scene.objects:
            row, column = int(item.y // PATCH_PIXELS), int(item.x // PATCH_PIXELS)
            assert classes[0, row, column] == 1 + list(COLORS).index(item.color)
            assert classes[2, row, column] == CENTRE_PART
            said = {PATCH_WORDS[i] for i in words[row, column].nonzero()[0]}
            assert said == {item.color, item.shape, item.size, *item.cell.split()}
        assert picture_tags(scene).sum() >= 2


def test_charts_label_their_bars() -> None:
    charts = [s for s in (make_sample("train", 1, i) for i in PICTURES) if isinstance(s.picture, Chart)]
    assert len(charts) > 20
    for sample in charts:
        assert isinstance(sample.picture, Chart)
        labels = PatchLabels(sample.picture, GRID)
        assert (labels.classes[1] >= BAR_CLASS).any()
        said = {PATCH_WORDS[i] for i in labels.words.any(0).nonzero()[0]}
        assert said == {word for bar in sample.picture.bars for word in (bar.color, str(bar.value))}


def test_signs_label_their_letters() -> None:
    signs = [s for s in (make_sample("train", 1, i) for i in PICTURES) if isinstance(s.picture, Sign)]
    assert len(signs) > 30
    for sample in signs:
        assert isinstance(sample.picture, Sign)
        forms = PatchLabels(sample.picture, GRID).classes[1]
        letters = {LETTERS[form - FIRST_LETTER_CLASS] for form in forms if form >= FIRST_LETTER_CLASS}
        assert letters == set("".join(word.text for word in sample.picture.words))


def test_the_patches_of_a_page_stand_for_what_can_be_asked() -> None:
    pages = [s.picture for s in (make_sample("train", 1, i, detailed=True) for i in PICTURES) if isinstance(s.picture, Page)]
    assert {page.kind for page in pages} == {"page", "table", "dense_chart", "small_text"}
    for page in pages:
        labels = PatchLabels(page, 24, detailed=True)
        said = {PATCH_WORDS[i] for i in labels.words.any(0).nonzero()[0]}
        for fact in page.facts:
            # A letter or digit may share a patch with its neighbour; both stay.
            assert {*fact.asked, *fact.answer.replace(" ", "")} <= said, page.kind
