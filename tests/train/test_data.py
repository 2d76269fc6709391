"""Conversations on disk: both formats, whatever the size of the file, and what is wrong with a row in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.errors import InputError
from foveate.train import data
from foveate.train.data import ConversationFile, from_chat, from_llava, holds_conversations, pictures_of


def llava(picture: str | None, *turns: str) -> dict[str, Any]:
    said = [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(turns)]
    return {"id": "0", "conversations": said} | ({"image": picture} if picture else {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    return tmp_path


def write(folder: Path, rows: Any, name: str = "rows.json") -> Path:
    path = folder / name
    text = (
        "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith("l")
        else json.dumps(rows, ensure_ascii=False, indent=1)
    )
    path.write_text(text, encoding="utf-8")
    return path


def test_files_of_conversations_are_told_from_other_lines(folder):
    talk = llava("a.png", "q", "a")
    assert holds_conversations(write(folder, [talk])) and holds_conversations(write(folder, [talk], "rows.jsonl"))
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert holds_conversations(write(folder, [chat], "rows.jsonl"))
    assert not holds_conversations(write(folder, [{"image": "a.png", "question": "q", "answer": "a"}], "rows.jsonl"))
    for text in ("", "{", "[1]"):
        (folder / "odd.jsonl").write_text(text)
        assert not holds_conversations(folder / "odd.jsonl")
    assert not holds_conversations(folder / "none.jsonl") and not holds_conversations(folder / "a.png")


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_are_found_again_by_their_bytes(monkeypatch, folder, name, chunk):
    monkeypatch.setattr(data, "_CHUNK", chunk)
    rows = [llava("a.png", f"<image>\nwhat is é {n}?", 'a "} ] {" — ' + "字" * n) for n in range(5)]
    found = ConversationFile(write(folder, rows, name))
    assert len(found) == 5
    for index in (3, 0, 4, 4, 1, 2):
        assert found[index][1]["content"] == [{"type": "text", "text": rows[index]["conversations"][1]["value"].strip()}]
        assert found[index][0]["content"][0]["image"].size == (20, 10)


def test_pictures_stand_where_llava_says():
    row = llava(None, "first <image> then <image>\nwhich?", "the second") | {"image": ["a", "b"]}
    messages = from_llava(row, "here")
    kinds = [part.get("text", part.get("image")) for part in messages[0]["content"]]
    assert kinds == ["first", "a", "then", "b", "which?"]
    assert pictures_of(messages) == ["a", "b"]
    unmarked = from_llava(llava("a", "which?", "this", "and?", "that"), "here")
    assert [part["type"] for part in unmarked[0]["content"]] == ["image", "text"]
    assert [message["role"] for message in unmarked] == ["user", "assistant"] * 2


def test_chat_messages_take_text_and_parts():
    messages = from_chat(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "image", "path": "x/a.png"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "this"},
        ],
        "here",
    )
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == [{"type": "image", "image": "x/a.png"}, {"type": "text", "text": "what?"}]
    assert messages[2]["content"] == [{"type": "text", "text": "this"}]


def test_missing_pictures_are_counted_and_broken_ones_replaced_by_the_next_row(folder):
    rows = [llava("a.png", "0", "0"), llava("none.png", "1", "1"), llava("broken.png", "2", "2"), llava(None, "3", "3")]
    found = ConversationFile(write(folder, rows))
    assert (len(found), found.missing) == (3, 1)
    assert [found[index][1]["content"][0]["text"] for index in range(3)] == ["0", "3", "3"]
    assert found.broken.tolist() == [0, 1, 0]


def test_nothing_to_read_is_refused(folder):
    with pytest.raises(InputError, match="2 rows name pictures that are not in"):
        ConversationFile(write(folder, [llava("x.png", "0", "0"), llava("y.png", "1", "1")]))
    only_broken = ConversationFile(write(folder, [llava("broken.png", "0", "0")]))
    with pytest.raises(InputError, match="none of its pictures can be read"):
        only_broken[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"conversations": []}', "no list of conversations"),
        ('[{"conversations": [{"from": "human", "value": "a"}', "is it complete"),
        ("[1]", "row 0: a row has 'conversations'"),
        ('[{"conversations": [{"from": "human", "value": "a"}]}]', "no turn of the assistant"),
        ('[{"conversations": [{"from": "dog", "value": "a"}]}]', "'from': 'human' or 'gpt'"),
        ('[{"image": "a.png", "conversations": [{"from": "human", "value": "<image> <image>"}]}]', "2 times <image>, but 1"),
        ('[{"messages": [{"role": "user", "content": [{"type": "video"}]}]}]', "of type text or image"),
        ('[{"messages": [{"role": "user", "content": [{"type": "image", "url": "http://x/y.png"}]}]}]', "download it first"),
        ('[{"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}]}]', "answers with text only"),
        ("[]", "no usable row"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(folder, text, said):
    path = folder / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        ConversationFile(path)
    assert "\n" not in str(error.value)


def test_a_broken_line_is_named_by_its_number(folder):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(llava(None, "a", "b")) + "\n\n{broken\n")
    with pytest.raises(InputError, match=r"rows.jsonl, line 3 is not JSON"):
        ConversationFile(path)
    path.write_bytes(json.dumps(llava(None, "a", "b")).encode() + b"\n\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        ConversationFile(path)


def test_wrong_paths_are_refused(folder):
    with pytest.raises(InputError, match="no data at"):
        ConversationFile(folder / "none.json")
    with pytest.raises(InputError, match="no folder of pictures"):
        ConversationFile(write(folder, []), folder / "none")
    (folder / "rows.csv").write_text("")
    with pytest.raises(InputError, match=r"\.json file with a list"):
        ConversationFile(folder / "rows.csv")
