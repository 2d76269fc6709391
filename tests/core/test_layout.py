"""Layouts: which column is what, for ragged rows, both paddings, several media, separators and parts of a prompt."""

from __future__ import annotations

import pytest
import torch

from foveate.core.layout import Layout, Role
from foveate.core.shape import MediumShape
from foveate.errors import InputError

SMALL = MediumShape("image", (1, 1, 2))
WIDE = MediumShape("image", (1, 1, 3))
FRAMED = MediumShape("image", (1, 2, 2), separators=(0, 3))  # CLS, 2 tokens, newline, 2 tokens
LETTERS = {"p": Role.PAD, "s": Role.SYSTEM, "v": Role.VISUAL, "i": Role.INSTRUCT, "o": Role.OUTPUT}


def build(*rows: str, shapes: list[list[MediumShape]], prompt_length: int | None = None) -> Layout:
    """From rows of `.` padding, `v` visual and `t` text."""
    visual = torch.tensor([[letter == "v" for letter in row] for row in rows])
    real = torch.tensor([[letter != "." for letter in row] for row in rows])
    return Layout.build(visual, real, shapes, prompt_length)


def roles(layout: Layout) -> list[str]:
    letters = {int(role): letter for letter, role in LETTERS.items()}
    return ["".join(letters[value] for value in row) for row in layout.roles.tolist()]


def columns(layout: Layout) -> list[tuple[int, int, list[int]]]:
    return [(medium.row, medium.index, medium.columns.tolist()) for medium in layout.media]


def test_text_before_the_first_medium_is_system_text_after_it_instruction():
    layout = build("ttvvttvvvt", shapes=[[SMALL, WIDE]])
    assert roles(layout) == ["ssvviivvvi"]
    assert columns(layout) == [(0, 0, [2, 3]), (0, 1, [6, 7, 8])]


def test_adjacent_images_without_text_between_stay_two_media():
    assert columns(build("tvvvvvt", shapes=[[SMALL, WIDE]])) == [(0, 0, [1, 2]), (0, 1, [3, 4, 5])]
    assert columns(build("tvvvvvt", shapes=[[WIDE, SMALL]])) == [(0, 0, [1, 2, 3]), (0, 1, [4, 5])]


def test_padding_on_either_side_is_padding():
    layout = build("..tvvt", "tvvt..", "tttttt", shapes=[[SMALL], [SMALL], []])
    assert roles(layout) == ["ppsvvi", "svvipp", "iiiiii"]
    assert columns(layout) == [(0, 0, [3, 4]), (1, 0, [1, 2])]
    assert torch.equal(layout.real, layout.roles != int(Role.PAD))
    assert layout.is_role(Role.VISUAL).sum() == 4


def test_a_prompt_that_begins_with_a_picture_has_no_system_text():
    assert roles(build("vvt", shapes=[[SMALL]])) == ["vvi"]


def test_separators_are_visual_columns_that_no_medium_offers():
    layout = build("tvvvvvvtvv", shapes=[[FRAMED, SMALL]])
    assert roles(layout) == ["svvvvvvivv"]
    assert columns(layout) == [(0, 0, [2, 3, 5, 6]), (0, 1, [8, 9])]


def test_columns_behind_the_prompt_are_output():
    layout = build("tvvtt", ".tvvt", shapes=[[SMALL], [SMALL]], prompt_length=4)
    assert roles(layout) == ["svvio", "psvvo"]


@pytest.mark.parametrize("row", ["tvt", "tvvvt", "ttt"])
def test_placeholders_that_do_not_fit_the_media_are_refused(row):
    with pytest.raises(InputError, match=r"row 0 has \d visual placeholder tokens, but its 1 images or videos fill 2"):
        build(row, shapes=[[SMALL]])


def test_extended_appends_output():
    layout = build("tvvt", shapes=[[SMALL]])
    assert roles(layout.extended(6)) == ["svvioo"]
    assert layout.extended(4) is layout and layout.extended(3) is layout
    assert layout.extended(6).width == 6 and columns(layout.extended(6)) == columns(layout)


def test_a_part_of_the_columns_counts_from_its_own_start():
    layout = build("tvvttvvvtt", shapes=[[SMALL, WIDE]])
    part = layout.columns_between(4, 9)
    assert roles(part) == ["ivvvi"]
    assert columns(part) == [(0, 1, [1, 2, 3])]
    assert columns(layout.columns_between(0, 10)) == columns(layout)


@pytest.mark.parametrize("bounds", [(2, 10), (0, 2), (6, 10), (0, 7)])
def test_a_medium_that_a_bound_splits_is_left_out(bounds):
    layout = build("tvvttvvvtt", shapes=[[SMALL, WIDE]])
    whole = [medium.index for medium in layout.columns_between(*bounds).media]
    first, last = bounds
    assert whole == [index for index, (a, b) in enumerate([(1, 3), (5, 8)]) if first <= a and b <= last]


def test_repeated_rows_stand_together_as_in_beam_search():
    layout = build("tvvtt.", "tvvvvv", shapes=[[SMALL], [SMALL, WIDE]])
    twice = layout.repeated(2)
    assert roles(twice) == ["svviip", "svviip", "svvvvv", "svvvvv"]
    assert columns(twice) == [
        (0, 0, [1, 2]),
        (1, 0, [1, 2]),
        (2, 0, [1, 2]),
        (2, 1, [3, 4, 5]),
        (3, 0, [1, 2]),
        (3, 1, [3, 4, 5]),
    ]
    assert layout.repeated(1) is layout
