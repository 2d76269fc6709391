"""The grafted model on tiny random weights: what trains, what a row is, runs that go on, what ships and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo_model import graft
from demo_model.graft_adapter import GraftConfig, grafted, with_adapter
from demo_model.graft_rows import IGNORED, QUESTIONS, Rows
from foveate.demo.samples import make_sample
from foveate.errors import InputError
from foveate.evaluate.intervals import Mean
from real_weights.models import joined_config

SIDE = 56  # 4 x 4 patches of 14 pixels, 4 visual tokens
CONFIG = GraftConfig(steps=4, batch_size=2, rank=2, held_out=4, save_every=2)


@pytest.fixture
def parts(processor: Any) -> tuple[Any, Any]:
    """A model of random parts, and the demo's tokenizer."""
    from transformers import InternVLForConditionalGeneration, InternVLVisionConfig, LlamaConfig

    tokenizer = processor.tokenizer
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = LlamaConfig(**small, vocab_size=len(tokenizer) + 1, num_key_value_heads=1, pad_token_id=0, bos_token_id=1)
    vision = InternVLVisionConfig(**small, image_size=SIDE, patch_size=14)
    torch.manual_seed(0)
    return InternVLForConditionalGeneration(joined_config(text, vision, len(tokenizer))).eval(), tokenizer


def test_a_row_is_a_picture_and_its_answers_are_predicted(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    rows = Rows(tokenizer, model.config, SIDE, "train", 1)
    row, sample = rows[5], make_sample("train", 1, 5)
    holders = int((row["input_ids"] == model.config.image_token_id).sum())
    assert holders == model.config.image_seq_length == 4
    predicted = row["labels"][row["labels"] != IGNORED]
    assert torch.equal(predicted, row["input_ids"][row["labels"] != IGNORED])
    said = tokenizer.decode(predicted)
    assert all(question.answer in said for question in sample.questions[:QUESTIONS])
    assert all(torch.equal(one, other) for one, other in zip(row.values(), rows[5].values(), strict=True))
    batch = next(iter(rows.batches(2, 2, 3, 0)))  # rows 4 and 5
    length = len(row["input_ids"])
    assert torch.equal(batch["input_ids"][1, :length], row["input_ids"])
    assert int(batch["attention_mask"][1].sum()) == length and (batch["labels"][1, length:] == IGNORED).all()


def test_the_projector_and_lora_train_and_nothing_else_moves(parts: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = parts
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert graft.train(model, tokenizer, CONFIG, tmp_path, 5, SIDE)
    after = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items() if "lora" not in name}
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in model.named_parameters())


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(parts: tuple[Any, Any], tmp_path: Path) -> None:
    import copy

    model, tokenizer = parts
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    assert graft.train(model, tokenizer, CONFIG, tmp_path / "whole", 5, SIDE)
    for _ in range(CONFIG.steps - 1):  # no time at all: one step in each call
        assert not graft.train(copy.deepcopy(other), tokenizer, CONFIG, tmp_path / "parts", 0, SIDE)
    assert graft.train(other, tokenizer, CONFIG, tmp_path / "parts", 0, SIDE)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="another seed"):
        graft.train(third, tokenizer, GraftConfig(**{**CONFIG.__dict__, "seed": 2}), tmp_path / "parts", 5, SIDE)


def test_a_model_that_does_not_look_is_refused_and_one_that_does_ships_its_adapter_alone(
    parts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import copy

    model, tokenizer = parts
    fresh, again = copy.deepcopy(model), copy.deepcopy(model)
    with pytest.raises(InputError):
        graft.release(model, tokenizer, tmp_path / "run", tmp_path / "adapter", SIDE)
    graft.train(model, tokenizer, CONFIG, tmp_path / "run", 5, SIDE)
    with pytest.raises(InputError, match="not accepted"):
        graft.release(fresh, tokenizer, tmp_path / "run", tmp_path / "adapter", SIDE)
    assert "with swapped pictures" in capsys.readouterr().out and not (tmp_path / "adapter").exists()
    monkeypatch.setattr(graft, "held_out", lambda *_: (Mean(1.0, 0.9, 1.1), Mean(1.5, 1.4, 1.6), Mean(0.5, 0.4, 0.6)))
    graft.release(copy.deepcopy(again), tokenizer, tmp_path / "run", tmp_path / "adapter", SIDE)
    held = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert held and all("lora" in name or "multi_modal_projector" in name for name in held)
    loaded = with_adapter(again, tmp_path / "adapter")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name)), name


def test_swapped_pictures_are_other_pictures(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    grafted(model, CONFIG)
    own, swapped, gain = graft.held_out(model, tokenizer, CONFIG, SIDE)
    assert own.value != swapped.value
    assert gain.value == pytest.approx(swapped.value - own.value)
