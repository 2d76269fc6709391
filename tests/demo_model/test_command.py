"""python -m demo_model."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo_model.__main__ import main


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_smoke_training_writes_a_model_and_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--smoke", "--out", str(out)])
    assert not stop.value.code
    assert "foveate eval demo --model" in capsys.readouterr().out
    assert (out / "log.jsonl").read_text().count("\n") >= 2
    assert (out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", "100"), "--smoke"),
        (("--precision", "int4"), "bfloat16 or float32"),
        (("--out", __file__), "is a file"),
    ],
)
def test_bad_requests_are_one_line(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert error.count("\n") == 1
