"""The training of Dynamic-LLaVA: its loss, its schedules, what it writes, and that stopping it changes nothing."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F

import foveate
from foveate.errors import FoveateError, InputError
from foveate.predictors import IMAGE, TEXT, read_config
from foveate.train import trainer as training
from foveate.train.checkpoints import last_checkpoint
from foveate.train.collator import IGNORED, ChatCollator
from foveate.train.config import DynamicLlavaConfig
from foveate.train.module import SoftModel
from foveate.train.parts import fresh_predictors
from tests import tiny
from tests.marks import one_and_more
from tests.train import runs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers by the old name
]


def batch(*indices: int) -> dict[str, torch.Tensor]:
    collate = ChatCollator(runs.processor(), [runs.processor().image_token_id])
    return collate([runs.Rows()[index] for index in indices])


def trainer(out: Path, **changes: Any) -> tuple[Any, SoftModel]:
    config = runs.settings(**changes)
    model = SoftModel(runs.load()[0], config)
    arguments = training.arguments(config, out, False)
    arguments.max_steps = config.steps
    made = training.PredictorTrainer(model, config, Console(quiet=True), args=arguments, train_dataset=runs.Rows())
    return made, model


def test_the_defaults_are_the_paper_s():
    config = DynamicLlavaConfig()
    assert (config.layer, config.keep, config.text_keep, config.least_answer) == (2, 0.2, 0.5, 50)
    assert (config.penalty_weight, config.predictor_rate, config.base_rate, config.warmup) == (100, 2e-4, 5e-6, 0.03)
    assert (config.weight_decay, config.predictor_decay) == (0, 0)
    assert (config.width, config.heads, config.feedforward, config.blocks) == (512, 8, 2048, 2)


def test_the_temperature_falls_exponentially_between_its_ends():
    config = DynamicLlavaConfig()
    assert config.tau(0, 500) == 1
    assert config.tau(500, 500) == pytest.approx(0.1)
    assert config.tau(250, 500) == pytest.approx(math.sqrt(0.1))
    steps = [config.tau(step, 500) for step in range(501)]
    assert all(b / a == pytest.approx(0.1 ** (1 / 500)) for a, b in pairwise(steps))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "half"}, "--mode is full, lora or predictors"),
        ({"masks": "none", "mode": "predictors"}, "use them with --mode full or lora"),
        ({"keep": 0.0}, "--keep 0.0: a share"),
        ({"text_keep": 1.5}, "--text-keep 1.5"),
        ({"tau_end": 2.0}, "the temperature falls"),
        ({"width": 20, "heads": 8}, "multiple of --heads"),
        ({"warmup": 1.0}, "shares below 1"),
        ({"steps": 0}, "--steps 0"),
        ({"predictor_rate": float("nan")}, "--predictor-rate nan"),
    ],
)
def test_settings_that_cannot_be_are_one_line(change, said):
    with pytest.raises(InputError, match=said):
        DynamicLlavaConfig(**change)


def test_steps_follow_from_rows_passes_and_processes():
    config = runs.settings(steps=None, batch_size=4, accumulate=2, epochs=3)
    assert [config.steps_for(rows) for rows in (8, 9, 17)] == [3, 6, 9]
    assert config.steps_for(17, processes=2) == 6
    assert runs.settings(steps=7).steps_for(1000) == 7


def test_the_loss_is_cross_entropy_and_the_weighted_distance_from_the_shares(tmp_path):
    made, model = trainer(tmp_path, penalty_weight=37.0)
    inputs = batch(1, 2, 0)
    model.train()
    model.soft.tau = 0.5
    torch.manual_seed(0)
    loss = made.compute_loss(model, dict(inputs)).detach()
    images = [float(share.detach()) for share in model.soft.image_shares]
    texts = [None if share is None else float(share.detach()) for share, _ in model.soft.text_shares]
    assert len(images) == 2 and len(texts) == 3
    torch.manual_seed(0)
    inner = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model.model(**inner, labels=inputs["labels"]).logits[:, :-1].detach()
    target = inputs["labels"][:, 1:]
    model_loss = F.cross_entropy(logits[target != IGNORED], target[target != IGNORED])
    missed = sum((share - 0.2) ** 2 for share in images) / 2
    missed += sum((share - 0.5) ** 2 for share in texts if share is not None) / 3
    assert float(loss) == pytest.approx(float(model_loss) + 37.0 * missed, rel=1e-5)
    with torch.no_grad():
        assert float(made.compute_loss(model.eval(), dict(inputs))) == pytest.approx(float(model(**inputs)["loss"]))


def test_validation_decides_as_the_finished_method_does(tmp_path):
    _, model = trainer(tmp_path)
    with torch.no_grad():
        results = [model.eval()(**batch(1, 2)) for _ in range(2)]
    assert float(results[0]["loss"]) == float(results[1]["loss"])
    assert float(results[0]["image_keep"]) == pytest.approx(28 / 144)  # a fifth, cut off


def test_each_part_has_its_rate_and_both_fall_as_a_cosine(tmp_path):
    made, model = trainer(tmp_path, steps=100, weight_decay=0.3, predictor_decay=0.2)
    made.create_optimizer()
    groups = made.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.3), (1e-3, 0.0), (1e-2, 0.2), (1e-2, 0.0)]
    assert [min(part.ndim for part in group["params"]) > 1 for group in groups] == [True, False, True, False]
    own = {id(part) for part in model.predictors.parameters()}
    assert {id(part) for group in groups[2:] for part in group["params"]} == own
    trained = {id(part) for part in model.parameters() if part.requires_grad}
    assert {id(part) for group in groups for part in group["params"]} == trained
    schedule = made.create_scheduler(100)
    seen = []
    for _ in range(100):
        seen.append([group["lr"] for group in groups])
        made.optimizer.step()
        schedule.step()
    for rates, peak in (([rates[0] for rates in seen], 1e-3), ([rates[-1] for rates in seen], 1e-2)):
        assert rates[0] == 0 and rates[3] == pytest.approx(peak)  # 3 % of the steps
        assert rates[50] == pytest.approx(peak * (1 + math.cos(math.pi * 47 / 97)) / 2)


def test_gradients_are_clipped_part_by_part(tmp_path):
    made, model = trainer(tmp_path, max_grad_norm=0.5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e3 if name.startswith("predictors.") else 1e-6)
    made.clip.on_pre_optimizer_step(None, None, None)
    for name, part in model.groups().items():
        norm = torch.stack([parameter.grad.norm() for _, parameter in part]).norm()
        expected = 0.5 if name == "predictors" else 1e-6 * sum(p.numel() for _, p in part) ** 0.5
        assert float(norm) == pytest.approx(expected, rel=1e-3)


def test_the_vision_encoder_is_frozen_and_the_projector_trains():
    model = SoftModel(runs.load()[0], runs.settings()).train()
    frozen = {name for name, part in model.named_parameters() if not part.requires_grad}
    assert frozen and all(".vision_tower." in name for name in frozen)
    assert not model.model.model.vision_tower.training and model.model.model.language_model.training
    qwen = SoftModel(tiny.tiny_model("qwen2_5_vl"), runs.settings(layer=2))
    trained = {name for name, part in qwen.named_parameters() if part.requires_grad}
    assert any(".visual.merger." in name for name in trained) and not any(".visual.blocks." in name for name in trained)
    qwen.attachment.detach()


def test_predictors_begin_as_the_model_s_own_layers_do():
    config = runs.settings(width=256, heads=8, feedforward=512)
    first, again = (fresh_predictors(runs.load()[0], config) for _ in range(2))
    for name, module in first.items():
        for (key, part), other in zip(module.named_parameters(), again[name].parameters(), strict=True):
            assert torch.equal(part, other)
            if key.endswith(("fc1.weight", "qkv.weight")):
                assert float(part.detach().std()) == pytest.approx(0.02, rel=0.05)
    other = fresh_predictors(runs.load()[0], runs.settings(width=256, heads=8, feedforward=512, seed=1))
    assert not torch.equal(other[TEXT].output_mlp[1].weight, first[TEXT].output_mlp[1].weight)


@pytest.mark.parametrize("mode", one_and_more(["predictors", "full", "lora"]))
def test_the_result_loads_as_a_plan(tmp_path, mode):
    out = tmp_path / "run"
    outcome = runs.train(out, mode=mode, lora_rank=2, accumulate=2, eval_every=3)
    before, _ = runs.load()
    if mode == "full":
        from transformers import LlavaForConditionalGeneration

        model = LlavaForConditionalGeneration.from_pretrained(outcome.model)
        changed = dict(model.named_parameters())
        for name, part in before.named_parameters():
            assert torch.equal(part, changed[name]) == ("vision_tower" in name), name
        with pytest.raises(InputError, match="trained for the model beside them"):
            foveate.attach(before, outcome.spec)
    elif mode == "lora":
        from peft import PeftModel

        model = PeftModel.from_pretrained(before, outcome.model)
    else:
        model = before
        assert outcome.model is None
    config = read_config(str(out))
    assert (config.layer, config.keep, config.text_keep, config.width) == (1, 0.2, 0.5, 16)
    assert (config.provenance["steps"], config.provenance["data"], config.provenance["settings"]["seed"]) == (6, "rows", 0)
    assert config.provenance["scores"]["eval_image_keep"] == pytest.approx(28 / 144)
    stored = load_file(out / "predictors.safetensors")
    fresh = fresh_predictors(runs.load()[0], runs.settings())
    assert not any(torch.equal(stored[f"{IMAGE}.{key}"], part) for key, part in fresh[IMAGE].state_dict().items())
    inputs = {name: value for name, value in batch(1).items() if name != "labels"}
    with foveate.attach(model, outcome.spec) as attachment:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert [len(entry.kept_index) for entry in attachment.trace] == [28]
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    first = next(entry for entry in entries if "tau" in entry)
    assert {"loss", "model_loss", "penalty", "image_keep", "tau", "predictor_rate", "predictors_grad"} <= set(first)
    assert ("base_rate" in first) == (mode != "predictors")
    assert [entry["tau"] for entry in entries if "tau" in entry] == [runs.settings().tau(step, 6) for step in range(6)]
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [3, 6]


@pytest.mark.full
@pytest.mark.parametrize("masks", one_and_more(["none", "random"]))
def test_controls_leave_a_model_and_no_predictors(tmp_path, masks):
    outcome = runs.train(tmp_path / "run", masks=masks)
    assert outcome.spec == "" and outcome.model is not None
    assert not (outcome.out / "predictors.json").exists()
    told = json.loads((outcome.out / "control.json").read_text())
    assert told["settings"]["masks"] == masks
    assert told["scores"].get("image_keep", 1.0) == pytest.approx(28 / 144 if masks == "random" else 1.0)


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        (8, {"mode": "predictors"}),  # past the end of the first time the rows are seen
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (
                (14, {"mode": "full", "eval_every": 2, "accumulate": 2}),  # in the middle of the second time
                (8, {"masks": "random"}),
            )
        ),
    ],
)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, stop_at, changes):
    whole = runs.train(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        runs.train(tmp_path / "parts", runs.Rows(stop_at=stop_at), **changes)
    assert last_checkpoint(tmp_path / "parts").name == "checkpoint-3"
    parts = runs.train(tmp_path / "parts", resume=True, **changes)
    for name in ("predictors.safetensors", "model/model.safetensors"):
        if (whole.out / name).exists():
            first, second = load_file(whole.out / name), load_file(parts.out / name)
            assert all(torch.equal(first[key], second[key]) for key in first)
    timings = ("_runtime", "_per_second")
    logs = [
        [{key: value for key, value in entry.items() if not key.endswith(timings)} for entry in entries[:-1]]
        for entries in (
            [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()] for run in (whole, parts)
        )
    ]
    assert logs[0] == logs[1] and len(logs[0]) >= 6


@pytest.mark.full
def test_a_folder_in_use_and_a_run_with_other_settings_are_refused(tmp_path):
    runs.train(tmp_path / "run", steps=2, save_every=1)
    for options, said in (
        ({}, "not empty: continue its run with --resume"),
        ({"resume": True, "steps": 4}, "that run has steps 2, not 4"),
    ):
        with pytest.raises(InputError, match=said):
            runs.train(tmp_path / "run", **({"steps": 2} | options))
    with pytest.raises(InputError, match="holds no run"):
        runs.train(tmp_path / "elsewhere", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        runs.train(tmp_path / "file")


def test_what_cannot_train_writes_nothing(tmp_path):
    for changes, said in (
        ({"layer": 9}, "layer=9: this model has 3 decoder layers"),
        ({"max_length": 20}, "raise --max-length"),
        ({"eval_every": 1}, "--eval-every needs rows"),
    ):
        config = runs.settings(**changes)
        with pytest.raises(FoveateError, match=said):
            training_run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def training_run(config: DynamicLlavaConfig, out: Path) -> None:
    from foveate.train.run import train_predictors

    train_predictors(runs.load, OnePicture(), out, config)


class OnePicture(runs.Rows):
    """The first row has a picture."""

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return super().__getitem__(1)


@pytest.mark.full
def test_several_passes_make_the_step_of_one(tmp_path):
    """Rows with answers of one length, so that the mean over tokens is the mean over passes."""
    changes = {"masks": "none", "steps": 2}
    rows = [OnePicture(), OnePicture()]
    one = runs.train(tmp_path / "one", rows[0], batch_size=2, **changes)
    two = runs.train(tmp_path / "two", rows[1], batch_size=1, accumulate=2, **changes)
    first, second = (load_file(run.model / "model.safetensors") for run in (one, two))
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-4)


@pytest.mark.since((5, 23), "before, checkpointing replays hooks inside backward")
@pytest.mark.full
@pytest.mark.parametrize("mode", ["full", "predictors"])
def test_checkpointing_changes_no_weight(tmp_path, mode):
    plain, saving = (
        runs.train(tmp_path / str(on), mode=mode, steps=2, checkpointing=on).out / "predictors.safetensors"
        for on in (False, True)
    )
    first, second = load_file(plain), load_file(saving)
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-5, rtol=1e-3)


@pytest.mark.full
def test_bfloat16_computes_over_float32_weights(tmp_path):
    outcome = runs.train(tmp_path / "run", steps=2, precision="bf16")
    assert all(part.dtype == torch.float32 for part in load_file(outcome.model / "model.safetensors").values())
    assert math.isfinite(outcome.scores["loss"])
