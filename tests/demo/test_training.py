from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.demo.loading import load_demo
from foveate.demo.optimization import MasterWeights, Muon, learning_rate_scale
from foveate.demo.training import DemoTrainingConfig, train_demo
from foveate.errors import FoveateError


class Ticks:
    """A clock that moves by a fixed amount per look, and may stop the run like a person would."""

    def __init__(self, seconds: float, limit: int | None = None) -> None:
        self.seconds, self.limit, self.looks = seconds, limit, 0

    def __call__(self) -> float:
        self.looks += 1
        if self.limit is not None and self.looks > self.limit:
            raise KeyboardInterrupt
        return self.looks * self.seconds


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_stopped_smoke_run_resumes_and_exports_a_plain_model(tmp_path: Path) -> None:
    config = DemoTrainingConfig(out=tmp_path, smoke=True)
    with pytest.raises(KeyboardInterrupt):
        train_demo(config, Ticks(0.1, limit=60))
    stopped = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert stopped["phase"] == "joint"
    assert 0 < stopped["elapsed"] < 6
    folder = train_demo(config, Ticks(0.1))
    finished = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert finished["phase"] == "done"
    assert finished["step"] > stopped["step"]
    log = records(tmp_path)
    assert log[0]["phase"] == "vision"
    assert log[-1]["step"] == finished["step"]
    assert 0 <= log[-1]["exist"] <= 1
    model, processor = load_demo(folder)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float32
    assert "foveate" not in (folder / "config.json").read_text()
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert train_demo(config, Ticks(0.1)) == folder
    assert len(records(tmp_path)) == len(log)


def test_a_run_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"vision_width": 1}}, tmp_path / "checkpoint.pt")
    with pytest.raises(FoveateError, match="another model size"):
        train_demo(DemoTrainingConfig(out=tmp_path, smoke=True))


def test_threads_are_restored_after_a_failure(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(FoveateError):
        train_demo(DemoTrainingConfig(out=tmp_path, smoke=True, threads=before + 1))
    assert torch.get_num_threads() == before


def test_the_learning_rate_ramps_stays_and_decays() -> None:
    rates = [learning_rate_scale(f, 0.03, 0.45) for f in (0.0, 0.015, 0.03, 0.5, 0.775, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.02])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_muon_agrees_with_torch() -> None:
    torch.manual_seed(0)
    for shape in ((16, 16), (16, 48), (48, 16)):
        ours = torch.randn(shape).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        optimizers = [
            Muon([ours], lr=0.01, weight_decay=0.05),
            torch.optim.Muon([theirs], lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        ]
        for _ in range(3):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        # Torch orthogonalises in bfloat16: the update, 0.01 x 0.2 x sqrt(48), agrees to about 1 %.
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_bfloat16_training_keeps_float32_masters_and_buffers(tiny_model: Any) -> None:
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
