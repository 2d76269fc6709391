"""Files of questions: pictures are found beside the file, and every bad line is named."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from foveate.errors import InputError
from foveate.evaluate.files import read_items

GOOD = {"image": "a.png", "question": "what?", "answer": "that"}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    def put(*lines: object):
        path = tmp_path / "data.jsonl"
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n", encoding="utf-8"
        )
        return path

    return put


def test_lines_are_read_in_order_and_pictures_beside_the_file(write, tmp_path):
    path = write(GOOD, "", {**GOOD, "image": ["deep/b.png", str(tmp_path / "a.png")], "answer": "größer", "id": 7}, GOOD)
    items = read_items(path)
    assert [item.name for item in items] == ["line 1", "line 3", "line 4"]
    assert items[1].images == (tmp_path / "deep/b.png", tmp_path / "a.png") and items[1].answer == "größer"
    assert items[0].images == (tmp_path / "a.png",) and items[0].question == "what?"
    assert read_items(path, most=2) == items[:2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ([1], "write an object"),
        ({**GOOD, "image": 3}, "image must be"),
        ({**GOOD, "image": []}, "image must be"),
        ({**GOOD, "image": ["a.png", ""]}, "image must be"),
        ({"question": "q", "answer": "a"}, "image must be"),
        ({**GOOD, "question": " "}, "question must be text"),
        ({**GOOD, "answer": 12}, "answer must be text"),
        ({**GOOD, "image": "c.png"}, "no picture at"),
    ],
)
def test_a_bad_line_is_named(write, line, says):
    with pytest.raises(InputError, match=f"line 2.*{says}"):
        read_items(write(GOOD, line))


def test_files_that_cannot_be_read(write, tmp_path):
    with pytest.raises(InputError, match="no data at"):
        read_items(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="has no line"):
        read_items(write(""))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_items(tmp_path / "bytes.jsonl")
