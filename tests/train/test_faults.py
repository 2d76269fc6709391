"""Trainings that are killed, starved of room or given broken checkpoints: nothing is lost, nothing goes on silently."""

from __future__ import annotations

import errno
import json
import math
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate.errors import FoveateError, InputError
from foveate.files.folders import locked
from foveate.train.checkpoints import last_checkpoint
from tests.convert.official import Bomb
from tests.faults import duration, killed
from tests.marks import one_and_more
from tests.train import runs


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped behind its first checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        runs.train(out, runs.Rows(stop_at=11), save_every=2)
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def newest(run: Path) -> Path:
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def refused(run: Path, words: str) -> None:
    with pytest.raises(InputError) as caught:
        runs.train(run, resume=True, save_every=2)
    message = str(caught.value)
    assert words in message and message.isprintable()


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "trained.safetensors"]


@pytest.mark.full
@pytest.mark.parametrize("name", one_and_more(FILES))
def test_a_checkpoint_that_lacks_a_file_is_refused_by_its_name(run, name):
    path = newest(run) / name
    whole = path.read_bytes()
    path.unlink()
    refused(run, f"{name} is missing")
    for content in (b"", whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:], pickle.dumps(Bomb(run / "bomb"))):
        path.write_bytes(content)
        refused(run, f"{name} is not what was written")
    assert not (run / "bomb").exists()


@pytest.mark.parametrize("name", one_and_more(FILES))
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(run, name):
    """Whoever writes the list too can make it fit what they put there."""
    from foveate.train.checkpoints import WHOLE, _mark

    folder = newest(run)
    (folder / name).write_bytes(pickle.dumps(Bomb(run / "bomb")))
    marks = {**json.loads((folder / WHOLE).read_text()), name: _mark(folder / name)}
    (folder / WHOLE).write_text(json.dumps(marks))
    refused(run, folder.name)
    assert not (run / "bomb").exists()


def test_an_unfinished_checkpoint_is_passed_over_and_a_folder_that_is_none(run):
    for name in ("checkpoint-999", "checkpoint-abc", "checkpoint-"):
        (run / name).mkdir()
        (run / name / "trainer_state.json").write_text("{}")
    found = last_checkpoint(run)
    assert found is not None and found.name == "checkpoint-2"


@pytest.mark.full
def test_a_full_disk_leaves_the_checkpoint_before(monkeypatch, tmp_path):
    from foveate.train.trainer import PredictorTrainer

    save = PredictorTrainer._save_optimizer_and_scheduler

    def full(self: Any, folder: str) -> None:
        if folder.endswith("-4"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, folder)

    with monkeypatch.context() as patched:
        patched.setattr(PredictorTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(InputError, match=r"checkpoint-4 cannot be written .*No space left.*with --resume"):
            runs.train(tmp_path / "run", save_every=2)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert runs.train(tmp_path / "run", resume=True, save_every=2).steps == 6


def test_a_second_training_into_a_folder_is_refused_at_once(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(InputError, match="another process is writing"):
        runs.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_program_to_report_to_that_is_not_there_is_refused_with_the_choices(tmp_path):
    with pytest.raises(InputError, match=r"--report-to nosuch: .*none, .*tensorboard.*wandb"):
        runs.train(tmp_path / "run", report_to="nosuch")
    assert not (tmp_path / "run").exists()


NUMBERS = ["workers", "batch_size", "accumulate", "epochs", "steps", "base_rate", "predictor_rate", "penalty_weight", "width"]
NUMBERS += [
    "heads",
    "blocks",
    "feedforward",
    "max_length",
    "seed",
    "layer",
    "lora_alpha",
    "lora_rank",
    "tau_start",
    "save_every",
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 10**30, "9", True])
def test_a_number_that_no_training_can_have_is_refused(name, value):
    with pytest.raises(FoveateError) as caught:
        runs.settings(**{name: value})
    assert f"--{name.replace('_', '-')}" in str(caught.value)


def mended(out: Path) -> Path | None:
    """The newest whole checkpoint. One that was cut off at its very end is refused by name, and deleted as the refusal says."""
    try:
        return last_checkpoint(out)
    except InputError:
        shutil.rmtree(max(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])))
        return last_checkpoint(out)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [12])
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, kills):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    took = duration(lambda: runs.train(whole, mode="predictors", save_every=1))
    points = random.Random(kills)
    for _ in range(kills):
        ended = killed(
            lambda: runs.train(broken, mode="predictors", save_every=1, resume=(broken / "run.json").is_file()),
            took * (0.3 + 0.6 * points.random()),
        )
        assert mended(broken) is not None or not ended
    killed(lambda: runs.train(broken, mode="predictors", save_every=1, resume=(broken / "run.json").is_file()), 60)
    for name in ("predictors.safetensors",):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
