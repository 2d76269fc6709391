from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo_model.config import DemoTrainingConfig
from demo_model.optimization import MasterWeights, learning_rate_scale
from demo_model.training import train_demo
from foveate.demo.loading import load_demo
from foveate.errors import FoveateError


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def stop_at(phase: str, step: int) -> Any:
    """Stops the run like a person would."""

    def on_step(now: str, done: int) -> None:
        if (now, done) == (phase, step):
            raise KeyboardInterrupt

    return on_step


def small(out: Path, **changes: Any) -> DemoTrainingConfig:
    return replace(DemoTrainingConfig(out=out, smoke=True).resolved(), smoke=False, **changes)


def at_every_step(config: DemoTrainingConfig) -> DemoTrainingConfig:
    """Saved after each step, so that it may be stopped at any; with each save comes a validation, here a short one."""
    return replace(config, checkpoint_minutes=0.0, validation_pictures=1)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_stopped_run_resumes_and_exports_a_plain_model(tmp_path: Path) -> None:
    config = small(tmp_path, checkpoint_minutes=99.0, validation_pictures=4)
    with pytest.raises(KeyboardInterrupt):
        train_demo(at_every_step(config), stop_at("joint", 25))
    stopped = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (stopped["phase"], stopped["step"]) == ("joint", 25)
    folder = train_demo(config)
    finished = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (finished["phase"], finished["step"]) == ("done", 60)
    log = records(tmp_path)
    assert log[0]["phase"] == "vision"
    assert log[-1]["step"] == finished["step"]
    assert 0 <= log[-1]["exist"] <= 1
    model, processor = load_demo(folder)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float32
    assert "foveate" not in (folder / "config.json").read_text()
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert train_demo(config) == folder
    assert len(records(tmp_path)) == len(log)


@pytest.mark.full
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = small(tmp_path / "whole", steps=30, precision="float32", checkpoint_minutes=99.0)
    train_demo(whole)
    broken = at_every_step(replace(whole, out=tmp_path / "broken"))
    for phase, step in (("vision", 7), ("joint", 9), ("joint", 23)):
        with pytest.raises(KeyboardInterrupt):
            train_demo(broken, stop_at(phase, step))
    train_demo(broken)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.full
@pytest.mark.timeout(600)
def test_steps_may_change_until_the_learning_rate_falls(tmp_path: Path) -> None:
    config = at_every_step(small(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train_demo(config, stop_at("joint", 15))
    longer = replace(config, steps=62)
    with pytest.raises(KeyboardInterrupt):
        train_demo(longer, stop_at("joint", 50))
    with pytest.raises(FoveateError, match="--steps 62"):
        train_demo(config)


def test_a_run_of_another_size_is_refused(tmp_path: Path) -> None:
    numbers = {"phase": "joint", "step": 1, "steps": 2, "elapsed": 1.0, "weights": {}, "optimizers": []}
    torch.save({**numbers, "model": {"vision_width": 1}}, tmp_path / "checkpoint.pt")
    with pytest.raises(FoveateError, match="another model size"):
        train_demo(DemoTrainingConfig(out=tmp_path, smoke=True))


def test_threads_are_restored_after_a_failure(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(FoveateError):
        train_demo(DemoTrainingConfig(out=tmp_path, smoke=True, threads=before + 1))
    assert torch.get_num_threads() == before


def test_the_learning_rate_ramps_stays_and_decays() -> None:
    rates = [learning_rate_scale(step, 100, warmup_steps=10, decay_steps=40) for step in (0, 4, 9, 60, 80, 100)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.02])


def test_bfloat16_training_keeps_float32_masters_and_buffers() -> None:
    layer = torch.nn.Linear(4, 4)
    layer.register_buffer("frequencies", torch.tensor([0.1]))
    before = layer.weight.detach().clone()
    masters = MasterWeights(layer, torch.bfloat16)
    optimizer = torch.optim.SGD(masters.masters, lr=1.0)
    for _ in range(4):
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        masters.step([optimizer], 1e-5)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.frequencies.dtype == torch.float32
    masters.release()
    assert layer.weight.dtype == torch.float32
    assert 0 < (layer.weight - before).abs().max() < 1e-4
