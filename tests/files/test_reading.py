"""Reading is bounded: regular files only, sizes that were said, JSON and UTF-8 and nothing else, one line for all refusals."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from foveate.errors import InputError
from foveate.files.paths import user_path
from foveate.files.reading import json_lines, open_regular, parse_json, read_bytes, read_json, read_text


def refusal(function, *arguments):
    with pytest.raises(InputError) as error:
        list(function(*arguments))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("x")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        listening.bind("socket")
        for path, words in (
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "a socket"),
            (tmp_path, "a folder"),
            (Path("/dev/zero"), "a device"),
            (tmp_path / "none", f" at {tmp_path / 'none'}"),
            (tmp_path / "file" / "x", "Not a directory"),
            (tmp_path / "circle", "symbolic links"),
            (tmp_path / ("x" * 256), "File name too long"),
            (tmp_path / ("x" * 100_000), "File name too long"),
            (tmp_path / "a\0b", "zero byte"),
            (tmp_path / "\ud800", "half of a character"),
        ):
            for read in (open_regular, read_bytes, read_text, read_json, json_lines):
                assert words in refusal(read, path)


def test_sizes_are_bounded(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert "11 bytes" in refusal(read_bytes, path, 10)
    assert read_bytes(path, 11) == b"x" * 11
    assert "more than 10 bytes" in refusal(read_bytes, Path("/proc/self/status"), 10)
    path.write_bytes(b'{"a": "' + b"x" * 100 + b'"}\n')
    assert "line 1 is longer" in refusal(json_lines, path, 50)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},,{"a": 2}]', "not JSON"),
        ('[{"a": 1}{"a": 2}]', "not JSON"),
        ("[1]]]", "not JSON"),
        ("[1,]", "not JSON"),
        ("", "not JSON"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("[1e999]", "too large"),
        ("9" * 5000, "5000 digits"),
        ("-" + "9" * 20, "20 digits"),
        ('"\\ud800"', "half of a character"),
        ('{"\\udfff": 1}', "half of a character"),
        ("[" * 65 + "]" * 65, "deep"),
        ("[" * 1_000_000, "deep"),
        ('{"a":' * 100_000, "deep"),
    ],
)
def test_json_is_json(text, words):
    assert words in refusal(parse_json, text, "data.json")


def test_json_that_looks_deep_or_halved_is_read():
    assert parse_json('"' + "[" * 1000 + '\\""', "x") == "[" * 1000 + '"'
    assert parse_json('"\\ud83d\\ude00"', "x") == "\U0001f600"
    assert parse_json("[" + "[]," * 1000 + "[]]", "x") == [[]] * 1001
    assert parse_json("[" * 64 + "]" * 64, "x")


def test_lines_have_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}', encoding="utf-8-sig")
    assert list(json_lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_bytes(b'{"a": 1}\n\xff\n')
    assert "line 2 is not UTF-8" in refusal(json_lines, path)


def test_paths_of_users(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/x") == Path("/somewhere/x")
    for text, words in (("~nosuchuser/x", "no such user"), ("", "empty"), ("a\0b", "zero byte")):
        with pytest.raises(InputError, match=words):
            user_path(text)
