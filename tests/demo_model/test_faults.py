"""A demo training with a broken checkpoint, a second one beside it, and one that is killed while it writes its model."""

from __future__ import annotations

import math
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from demo_model.config import DemoTrainingConfig
from demo_model.training import train_demo
from foveate.errors import InputError
from foveate.files.folders import locked
from tests.convert.official import Bomb
from tests.faults import content, duration, killed
from tests.marks import one_and_more


def small(out: Path, **changes: Any) -> DemoTrainingConfig:
    config = replace(DemoTrainingConfig(out=out, smoke=True).resolved(), smoke=False, vision_steps=1, steps=1, decay_steps=1)
    return replace(config, validation_pictures=1, checkpoint_minutes=99.0, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train_demo(small(out))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def refused(run: Path, words: str = "checkpoint.pt is damaged") -> None:
    with pytest.raises(InputError) as caught:
        train_demo(small(run))
    assert words in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.full
def test_a_broken_checkpoint_is_refused_and_runs_nothing(run):
    path = run / "checkpoint.pt"
    whole, before = path.read_bytes(), content(run / "model")
    for damaged in (b"", whole[: len(whole) // 2], b"\0" * 100, pickle.dumps(Bomb(run / "bomb")), pickle.dumps([1])):
        path.write_bytes(damaged)
        refused(run)
    path.unlink()
    os.mkfifo(path)
    refused(run, "is a pipe")
    assert not (run / "bomb").exists() and content(run / "model") == before


BROKEN: list[tuple[str, Any]] = [("phase", "x"), ("phase", 3), ("step", -1), ("step", 1.5), ("steps", None), ("model", None)]
BROKEN += [("elapsed", math.nan), ("weights", {}), ("weights", []), ("optimizers", 3), ("optimizers", [{}])]
BROKEN += [("weights", {"a": torch.zeros(1)})]


@pytest.mark.parametrize(("name", "value"), one_and_more(BROKEN, 2))
def test_a_checkpoint_that_holds_no_run_is_refused(run, name, value):
    found = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save({**found, name: value}, run / "checkpoint.pt")
    refused(run)


def test_a_broken_processor_is_refused(run):
    (run / "processor" / "tokenizer.json").write_text("{")
    refused(run, "processor cannot be read")


def test_a_second_training_is_refused_at_once(run):
    with locked(run):
        refused(run, "another process is writing")


@pytest.mark.parametrize("name", ["threads", "steps", "batch_size", "seed"])
@pytest.mark.parametrize("value", [-1, 99_999_999_999, 1.5, True, math.nan])
def test_a_number_that_no_machine_can_run_is_refused(tmp_path, name, value):
    with pytest.raises(InputError, match=f"--{name} is a whole number"):
        train_demo(small(tmp_path / "run", **({"vision_batch_size": 1} | {name: value})))
    assert not (tmp_path / "run").exists()


def test_a_rate_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(InputError, match="learning_rate is a finite number"):
        train_demo(small(tmp_path / "run", learning_rate=math.nan))


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.full)])
def test_a_killed_export_leaves_a_whole_model(run, kills):
    names = set(content(run / "model"))
    took, points = duration(lambda: train_demo(small(run))), random.Random(kills)
    weights = (run / "model" / "model.safetensors").read_bytes()
    for _ in range(kills):
        killed(lambda: train_demo(small(run)), took * (0.3 + 0.8 * points.random()))
        found = content(run / "model")
        assert set(found) == names and found["model.safetensors"] == weights
    train_demo(small(run))
    assert sorted(path.name for path in run.iterdir() if not path.name.endswith(".lock")) == [
        "checkpoint.pt",
        "log.jsonl",
        "model",
        "processor",
    ]
