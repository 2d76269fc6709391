"""Output folders appear whole or not at all, and take nobody's place unasked."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from foveate.convert import dynamic_llava, stream
from foveate.convert.folders import check_target
from foveate.convert.stream import Entry, write_checkpoint
from foveate.errors import InputError
from foveate.files.folders import locked
from tests.convert import official


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return official.write(tmp_path / "src", official.weights(), official.config())


def test_a_target_that_exists_is_replaced_only_when_asked_to(source, tmp_path):
    target = tmp_path / "dst"
    dynamic_llava.convert_dynamic_llava(str(source), target)
    (target / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="add --overwrite"):
        dynamic_llava.convert_dynamic_llava(str(source), target)
    with pytest.raises(InputError, match=r"holds mine\.txt, which no conversion wrote, and is not replaced"):
        dynamic_llava.convert_dynamic_llava(str(source), target, overwrite=True)
    assert (target / "mine.txt").read_text() == "x" and (target / "config.json").is_file()
    (target / "mine.txt").unlink()
    dynamic_llava.convert_dynamic_llava(str(source), target, overwrite=True)
    assert (target / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["model.safetensors", "predictors/mine.txt", ".hidden/deep/mine.txt", "predictors/link"])
def test_no_file_that_is_not_a_conversion_s_own_is_ever_removed(source, tmp_path, name):
    target = tmp_path / "dst"
    dynamic_llava.convert_dynamic_llava(str(source), target, most_bytes=60_000)
    mine = target / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.symlink_to(source) if name.endswith("link") else mine.write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which no conversion wrote"):
        dynamic_llava.convert_dynamic_llava(str(source), target, overwrite=True)
    assert mine.exists()


def test_a_model_that_somebody_else_made_is_not_replaced(source, tmp_path):
    shutil.copytree(source, tmp_path / "dst")
    before = {path.name: path.read_bytes() for path in (tmp_path / "dst").iterdir()}
    with pytest.raises(InputError, match="which no conversion wrote"):
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / "dst", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dst").iterdir()} == before


def test_a_link_is_written_through_and_a_dangling_one_too(source, tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("real", "not yet"):
        (tmp_path / "link").symlink_to(tmp_path / name)
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / "link", overwrite=True)
        assert (tmp_path / "link").is_symlink() and (tmp_path / name / "config.json").is_file()
        (tmp_path / "link").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["not yet", "real", "src"]


@pytest.mark.parametrize(("link", "to"), [("loop", "loop"), ("nowhere", "no/such/place")])
def test_a_link_that_leads_nowhere_is_refused_and_stays(source, tmp_path, link, to):
    (tmp_path / link).symlink_to(tmp_path / to)
    with pytest.raises(InputError):
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / link, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([link, "src"]) and (tmp_path / link).is_symlink()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nosuchuser/x", "src/inside", "src/a/b", "file/below"])
def test_places_where_no_folder_can_be_are_refused(source, tmp_path, name):
    (tmp_path / "file").write_text("x")
    place = name if name.startswith("~") else tmp_path / name
    with pytest.raises(InputError) as caught:
        dynamic_llava.convert_dynamic_llava(str(source), place, overwrite=True)
    assert str(caught.value).isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "src"]


def test_a_folder_named_like_a_checkpoint_is_a_folder(source, tmp_path):
    made = dynamic_llava.convert_dynamic_llava(str(source), tmp_path / "checkpoint-abc")
    dynamic_llava.restore_dynamic_llava(str(made.folder), tmp_path / "checkpoint-x")
    with pytest.raises(InputError, match="what is converted"):
        dynamic_llava.restore_dynamic_llava(
            str(made.folder),
            tmp_path / "checkpoint-abc" / "predictors",
            predictors=str(made.folder / "predictors"),
            overwrite=True,
        )


def test_a_second_conversion_into_a_folder_is_refused_at_once(source, tmp_path):
    with locked(tmp_path / "dst"), pytest.raises(InputError, match="another process is writing"):
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_conversion_never_replaces_what_came_while_it_prepared(monkeypatch, source, tmp_path):
    prepare = dynamic_llava.load_tokenizer

    def slow(folder: Path) -> Any:
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst" / "theirs").write_text("x")
        return prepare(folder)

    monkeypatch.setattr(dynamic_llava, "load_tokenizer", slow)
    with pytest.raises(InputError, match="exists: name another folder"):
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / "dst")
    assert (tmp_path / "dst" / "theirs").read_text() == "x"


def test_a_conversion_that_stops_leaves_nothing_and_takes_nothing(monkeypatch, source, tmp_path):
    target = tmp_path / "dst"
    dynamic_llava.convert_dynamic_llava(str(source), target)
    before = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    read = stream.Checkpoint.read
    asked: list[str] = []

    def failing(self: stream.Checkpoint, name: str) -> torch.Tensor:
        asked.append(name)
        if len(asked) == 40:
            raise stops[0]
        return read(self, name)

    monkeypatch.setattr(stream.Checkpoint, "read", failing)
    stops: list[BaseException] = []
    for stop, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left"), InputError)):
        asked.clear()
        stops[:] = [stop]
        with pytest.raises(raised):
            dynamic_llava.convert_dynamic_llava(str(source), target, overwrite=True, most_bytes=30_000)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]
        assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "words"), [("file", "is a file"), ("photos", "which no conversion wrote"), ("no/way", "make it first")]
)
def test_other_places_are_refused_even_when_overwriting(tmp_path, name, words):
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("x")
    with pytest.raises(InputError, match=words):
        check_target(tmp_path / name, [tmp_path / "src"], True, 10)


@pytest.mark.parametrize("name", ["src", "."])
def test_the_source_is_never_replaced(source, tmp_path, name):
    with pytest.raises(InputError, match="holds what is converted"):
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / name, overwrite=True)


def test_a_full_disk_is_noticed_before_anything_is_written(monkeypatch, source, tmp_path):
    size = sum(tensor.nbytes for tensor in official.weights().values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size + 31 * 2**20))
    with pytest.raises(InputError, match=r"0.0 GB are needed|GB free and 0\.\d GB are needed"):
        dynamic_llava.convert_dynamic_llava(str(source), tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_files_are_read_by_the_format_s_own_library(tmp_path):
    """Odd counts of narrow numbers stand behind wide ones; no file is larger than asked unless one tensor is."""
    made = {
        "a": torch.randn(3, dtype=torch.float16),
        "b": torch.randn(5, 7),
        "c": torch.randn(()),
        "d": torch.randn(3, 0),
        "e": torch.randn(4, 6).t().to(torch.bfloat16),
    }
    words = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    entries = [Entry(name, words[tensor.dtype], tuple(tensor.shape)) for name, tensor in made.items()]
    for most, count in ((None, 1), (10, 4)):
        folder = tmp_path / str(most)
        folder.mkdir()
        files = write_checkpoint(folder, entries, made.__getitem__, most)
        assert len(files) == count
        found = {}
        for path in files:
            length = int.from_bytes(path.read_bytes()[:8], "little")
            header = json.loads(path.read_bytes()[8 : 8 + length])
            assert length % 8 == 0, "what follows must be aligned"
            assert all(one["data_offsets"][0] % made[name].itemsize == 0 for name, one in header.items() if name in made)
            with safe_open(path, framework="pt") as file:
                assert file.metadata() == {"format": "pt"}
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert found.keys() == made.keys()
        assert all(found[name].dtype == made[name].dtype and torch.equal(found[name], made[name]) for name in made)
        assert stream.Checkpoint(folder).entries == {entry.name: entry for entry in entries}
