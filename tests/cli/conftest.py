"""A random-weight model in a folder, as a user's own would lie there, and a runner for the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from demo_model.model import build_model
from demo_model.processor import build_processor
from foveate.cli.main import main
from tests.clips import write_clip


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables wrap in a narrow one; what they look like there has tests of its own."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    processor = build_processor(0, 200)
    model = build_model(processor.tokenizer, seed=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.effect_mandelbrot((120, 96), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `foveate ...`; returns exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Ten frames in two seconds."""
    return str(write_clip(tmp_path / "clip.mp4", size=(96, 96)))
