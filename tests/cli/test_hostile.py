"""Command lines and data that mean harm, or nothing: one line and exit status 2, in bounded time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from foveate.cli.main import main
from tests.marks import one_and_more

# Numbers that options get, and paths that no file has.
NUMBERS = ["9" * 20, "9" * 400, "9" * 5000, "-" + "9" * 400, "nan", "inf", "-inf", "1e999", "", "0x10", "-1"]
PATHS = ["x" * 256, "x" * 100_000, "~nosuchuser/x", "a\0b", "pipe", "/dev/zero", "circle", "file/x", "https://a.org/x.png"]
COUNTS = ("--visual-tokens", "--frames", "--text-tokens", "--new-tokens", "--batch", "--max-frames", "--images", "--fps")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    Path("file").write_text("x")
    return tmp_path


def ends(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    err = capsys.readouterr().err
    code = int(stop.value.code or 0)
    assert code in (0, 2), err[-2000:]
    assert code == 0 or len(err.splitlines()) == 1, err[-2000:]
    return code, err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", one_and_more(NUMBERS), ids=lambda text: text[:8])
def test_numbers_are_bounded(capsys, place, picture, number):
    for option in COUNTS:
        assert ends(capsys, "plan", option, number)[0] == 2
    for option in ("--new-tokens", "--repeats", "--frames", "--fps", "--max-frames", "--start", "--end"):
        assert ends(capsys, "run", picture, "what?", option, number)[0] == 2
    for layers in (number, f"0..{number}"):
        assert ends(capsys, "view", "attention", picture, "what?", "--layers", layers)[0] == 2
    assert ends(capsys, "eval", "generation", "--samples", number)[0] == 2
    assert ends(capsys, "eval", "demo", "--questions", number)[0] == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", one_and_more(PATHS, 2), ids=lambda text: text[:8])
def test_paths_are_refused_before_any_work(capsys, place, picture, path):
    before = sorted(place.iterdir())
    for arguments in (
        ("run", path, "what?"),
        ("run", "--video", path, "what?"),
        ("view", "merge", path),
        ("view", "merge", picture, "--html", path),
        ("view", "merge", picture, "--png", path),
        ("view", "text", "--png", path),
        ("view", "text", "--html", path),
        ("eval", "generation", path),
        ("eval", "generation", "--out", path),
        ("eval", "demo", "--out", path),
        ("eval", "demo", "--model", path),
        ("demo", "--results", path),
        ("doctor", "--image", path),
        ("doctor", path),
        ("plan", "--model", path),
        ("plan", "--video", path),
        ("run", picture, "what?", "--model", path),
    ):
        code, err = ends(capsys, *arguments)
        assert code == 2 and len(err) < 2500, arguments
    assert sorted(place.iterdir()) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("picture.png") | st.just("<image>"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["image", "question", "answer", "messages", "role", "content", "type", "text", "conversations", "from"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
CHAT = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": JSON | st.sampled_from(["user", "assistant", "system"]), "content": JSON}),
            max_size=3,
        )
    }
)
LLAVA = st.fixed_dictionaries(
    {
        "image": JSON,
        "conversations": st.lists(
            st.fixed_dictionaries({"from": JSON | st.sampled_from(["human", "gpt"]), "value": JSON}), max_size=3
        ),
    }
)
ITEM = st.fixed_dictionaries({"image": JSON, "question": JSON, "answer": JSON})


@pytest.mark.timeout(120)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(JSON | CHAT | LLAVA | ITEM, min_size=1, max_size=2), st.sampled_from([".jsonl", ".json"]), st.booleans())
@example([{"messages": [{"role": ["user"], "content": "x"}]}], ".jsonl", False)
@example(
    [{"image": 5, "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]}], ".json", False
)
@example([{"image": "picture.png", "conversations": [{"from": "gpt", "value": "a"}]}], ".json", False)
@example([{"messages": [{"role": "assistant", "content": "\ud800"}]}], ".jsonl", False)
def test_data_of_any_shape_ends_in_one_line(capsys, place, picture, rows, suffix, torn):
    texts = [json.dumps(row) for row in rows]
    text = "\n".join(texts) if suffix == ".jsonl" else f"[{','.join(texts)}]"
    Path(f"data{suffix}").write_text(text[:-1] if torn else text)
    # No model: rows are judged before one is looked for.
    code, err = ends(capsys, "eval", "generation", f"data{suffix}", "--model", "none")
    assert code == 2 and len(err) < 2500


WORDS = st.sampled_from(
    [
        "plan",
        "methods",
        "run",
        "view",
        "kept",
        "merge",
        "eval",
        "generation",
        "doctor",
        "train",
        "convert",
        "--",
        "--help",
        "--json",
    ]
) | st.sampled_from(
    ["--plan", "--model", "none", "--frames", "--images", "64x64", "--out", "\ud800", "\0", "[", *NUMBERS, *PATHS]
)


@pytest.mark.timeout(120)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(WORDS, min_size=1, max_size=6))
def test_any_words_end_in_0_or_2(capsys, place, words):
    if words[0] == "doctor":  # it measures for a while
        words = ["plan", *words[1:]]
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    err = capsys.readouterr().err
    assert int(stop.value.code or 0) in (0, 2), err[-2000:]
