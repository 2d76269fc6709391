"""Output folders appear whole or not at all, and take nobody's place unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from foveate.convert import dynamic_llava, stream
from foveate.convert.folders import appearing, check_target
from foveate.convert.stream import Entry, write_checkpoint
from foveate.errors import InputError
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
    assert (target / "mine.txt").is_file()
    dynamic_llava.convert_dynamic_llava(str(source), target, overwrite=True)
    assert not (target / "mine.txt").exists() and (target / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]


def test_a_conversion_that_stops_leaves_nothing_and_takes_nothing(monkeypatch, source, tmp_path):
    target = tmp_path / "dst"
    target.mkdir()
    (target / "config.json").write_text("{}")
    read = stream.Checkpoint.read
    asked: list[str] = []

    def failing(self: stream.Checkpoint, name: str) -> torch.Tensor:
        asked.append(name)
        if len(asked) == 40:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(stream.Checkpoint, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        dynamic_llava.convert_dynamic_llava(str(source), target, overwrite=True, most_bytes=30_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_what_is_there_comes_back_if_its_place_cannot_be_taken(monkeypatch, tmp_path):
    target = tmp_path / "dst"
    target.mkdir()
    (target / "config.json").write_text("mine")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"), appearing(target):
        pass
    assert (target / "config.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


@pytest.mark.parametrize(("name", "words"), [("file", "is a file"), ("photos", "holds no model"), ("no/way", "make it first")])
def test_other_places_are_refused_even_when_overwriting(tmp_path, name, words):
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("x")
    with pytest.raises(InputError, match=words):
        check_target(tmp_path / name, tmp_path / "src", True, 10)


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
