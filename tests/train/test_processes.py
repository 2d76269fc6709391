"""Two processes on one machine, talking through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate.predictors import read_config

ROOT = Path(__file__).parents[2]
SETTINGS = ("--precision", "fp32", "--base-rate", "1e-3", "--steps", "3", "--log-every", "1", "--seed", "0")


def launch(processes: int, *arguments: str) -> str:
    command = ["-m", "foveate", "train", "dynamic-llava", *SETTINGS, *arguments]
    if processes > 1:
        # What `accelerate launch` runs on GPUs; on a CPU that starts one process only.
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows with answers of one length, so that means of processes are the mean of all."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index in range(4):  # all of them in every step: the order in which processes take rows is their own affair
        Image.linear_gradient("L").rotate(90 * index).convert("RGB").save(folder / f"{index}.png")
        turns = [{"from": "human", "value": f"<image>\nis it {index}?"}, {"from": "gpt", "value": "a red star."}]
        rows.append({"image": f"{index}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


@pytest.mark.full
def test_two_processes_train_as_one_does(data: str, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    launch(1, "--data", data, "--masks", "none", "--batch-size", "4", "--out", one)
    told = launch(2, "--data", data, "--masks", "none", "--batch-size", "2", "--out", two)
    assert told.count("step 3 of 3  loss") == 1 and (Path(two) / "checkpoint-3" / "rng_state_1.pth").is_file()
    first, second = (logged(out) for out in (one, two))
    # Adam makes steps of full size of the last digits of small gradients, so weights are no measure; losses and norms are.
    for name in ("loss", "model_loss", "base_grad"):
        assert [entry[name] for entry in first] == pytest.approx([entry[name] for entry in second], rel=2e-3), name
    assert len(first) == 3


def logged(out: str) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


@pytest.mark.full
def test_two_processes_leave_one_set_of_predictors(data: str, tmp_path: Path) -> None:
    """Rows without a picture among them: some processes have nothing for a predictor to judge."""
    rows = json.loads(Path(data).read_text())
    for row in rows[::2]:
        del row["image"]
        row["conversations"][0]["value"] = "is it?"
    mixed = Path(data).parent / "mixed.json"
    mixed.write_text(json.dumps(rows))
    out = tmp_path / "run"
    launch(2, "--data", str(mixed), "--mode", "predictors", "--batch-size", "1", "--least-answer", "2", "--out", str(out))
    assert read_config(str(out)).provenance["steps"] == 3
