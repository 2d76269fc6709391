"""The training of a selector: its budgets, its curriculum, what it leaves, and that stopping it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import foveate
from foveate.demo.conversations import DemoConversations
from foveate.demo.evaluation import generate_answers
from foveate.demo.loading import load_demo
from foveate.errors import InputError
from foveate.predictors import read_config
from foveate.train.checkpoints import last_checkpoint
from foveate.train.collator import ChatCollator
from foveate.train.module import SoftModel
from foveate.train.run import train_predictors
from foveate.train.selector import SelectorConfig
from tests.marks import one_and_more
from tests.train import runs

TOKENS = 144  # of a picture of the demo's kind
QUERIES = ("none", "text")


def batch(*indices: int) -> dict[str, torch.Tensor]:
    collate = ChatCollator(runs.processor(), [runs.processor().image_token_id])
    return collate([runs.Rows()[index] for index in indices])


def soft_model(**changes: Any) -> SoftModel:
    return SoftModel(runs.load()[0], runs.selector_settings(**changes))


def train(out: Path, rows: Any = None, resume: bool = False, **changes: Any) -> Any:
    return runs.train(out, rows, resume, runs.selector_settings, **changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": "last"}, "--query is none or text, not 'last'"),
        ({"least_keep": 0.0}, "--least-keep 0.0: a share"),
        ({"most_keep": 1.5}, "--most-keep 1.5: a share"),
        ({"least_keep": 0.5, "most_keep": 0.4}, "--least-keep 0.5 is more than --most-keep 0.4"),
        ({"straight": 1.5}, "--straight 1.5: it must be"),
        ({"masks": "none"}, "use them with --mode full or lora"),
    ],
)
def test_settings_that_cannot_be_are_one_line(change, said):
    with pytest.raises(InputError, match=said):
        SelectorConfig(**change)


def test_every_pass_draws_a_budget_and_keeps_exactly_as_much():
    model, seen = soft_model(least_keep=0.1, most_keep=0.5).train(), set()
    for _ in range(12):
        model(**batch(1, 2))
        shares = [float(share.detach()) * TOKENS for share in model.soft.image_shares]
        assert shares[0] == pytest.approx(shares[1], abs=1e-3) == pytest.approx(round(shares[0]), abs=1e-3)
        seen.add(round(shares[0]))
    assert len(seen) > 6 and min(seen) >= round(0.1 * TOKENS) and max(seen) <= round(0.5 * TOKENS)
    model.eval()
    assert float(model(**batch(1, 2))["image_keep"]) == pytest.approx(29 / TOKENS), "validation keeps a fifth"


def test_decisions_harden_from_step_to_step_and_the_last_ones_are_hard():
    config, model = runs.selector_settings(steps=10, straight=0.3), soft_model()
    for step in range(10):
        config.at_step(model.soft, step, 10)
        assert model.soft.straight == (step >= 7) and model.soft.tau == config.tau(step, 10)
    policies = []
    for straight in (False, True):
        model.soft.straight = straight
        torch.manual_seed(0)
        policies.append(policy_of(model.train(), batch(1, 2)))
    assert not bool(((policies[0] == 0) | (policies[0] == 1)).all())
    assert bool(((policies[1] == 0) | (policies[1] == 1)).all()), "kept or dropped, to the last bit"
    assert float(policies[0].sum()) == pytest.approx(float(policies[1].sum()), abs=1e-3)


def policy_of(model: SoftModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """How much each column was kept."""
    seen: list[torch.Tensor] = []
    decoder = model.model.model.language_model.layers[0]
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["foveate_policy"].detach()), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("query", one_and_more(["text", "none"]))
@pytest.mark.parametrize("straight", one_and_more([True, False]))
def test_the_frozen_model_s_loss_reaches_the_scorer_and_nothing_else(query, straight):
    model = soft_model(query=query).train()
    model.soft.straight = straight
    out = model(**batch(1, 2))
    assert bool(out["penalty"].isnan()), "its budget is kept, so nothing is paid for missing it"
    out["loss"].backward()
    assert set(model.groups()["base"]) == set()
    for name, part in model.named_parameters():
        # One shift of all scores changes nothing.
        assert (part.grad is not None) == name.startswith("predictors.")
        if part.grad is not None and not name.endswith("score.1.bias"):
            assert bool(part.grad.isfinite().all()) and float(part.grad.abs().max()) > 0, name


@pytest.mark.parametrize("settings", [runs.selector_settings(), runs.settings(mode="predictors", text_keep=None)])
def test_a_pass_without_pictures_teaches_nothing(settings):
    model = SoftModel(runs.load()[0], settings).train()
    model(**batch(0, 3))["loss"].backward()
    assert all(not bool(part.grad.any()) for _, part in model.groups()["predictors"])


@pytest.mark.parametrize("query", one_and_more(["text", "none"]))
def test_the_result_loads_as_a_plan_of_any_budget_and_on_no_other_model(tmp_path, query):
    outcome = train(tmp_path / "run", query=query, eval_every=3)
    words = "" if query == "none" else ", query=text"
    assert outcome.spec == f"selector(site=pre_llm, keep=0.2{words}, path='{tmp_path / 'run'}')"
    config, (model, _) = read_config(str(outcome.out)), runs.load()
    assert (config.image, config.text_keep, config.layer, config.keep) == (False, None, 0, 0.2)
    assert config.selectors == (("selector",) if query == "none" else ("question_selector",))
    assert config.provenance["method"] == "arXiv 2510.16598" and config.provenance["calibration"] == {}
    assert config.provenance["scores"]["eval_image_keep"] == pytest.approx(29 / TOKENS)
    inputs, kept = {name: value for name, value in batch(1).items() if name != "labels"}, []
    for keep in (0.5, 0.2, 0.05):
        with foveate.attach(model, outcome.spec.replace("keep=0.2", f"keep={keep}")) as attachment:
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
            (medium,) = attachment.trace.media
        kept.append(set(medium.kept_index.tolist()))
    assert [len(one) for one in kept] == [72, 29, 7] and kept[2] < kept[1] < kept[0]
    with pytest.raises(InputError, match="whose weights are not those of this model"):
        foveate.attach(runs.load(seed=4)[0], outcome.spec)
    entries = [json.loads(line) for line in (outcome.out / "log.jsonl").read_text().splitlines()]
    logged = [entry for entry in entries if "tau" in entry]
    assert [entry["tau"] for entry in logged] == [runs.selector_settings().tau(step, 6) for step in range(6)]
    assert not any("penalty" in entry or "text_keep" in entry for entry in entries)


@pytest.mark.parametrize("query", one_and_more(["text", "none"]))
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, query):
    whole = train(tmp_path / "whole", query=query)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", runs.Rows(stop_at=9), query=query)
    assert last_checkpoint(tmp_path / "parts").name == "checkpoint-3"
    with pytest.raises(InputError, match=r"that run has least_keep 0\.05, not 0\.1"):
        train(tmp_path / "parts", resume=True, query=query, least_keep=0.1)
    with pytest.raises(InputError, match="holds a run of selector, not of dynamic-llava"):
        runs.train(tmp_path / "parts", resume=True, mode="predictors")
    parts = train(tmp_path / "parts", resume=True, query=query)
    first, second = (load_file(run.out / "predictors.safetensors") for run in (whole, parts))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert whole.scores == {
        **parts.scores,
        **{name: whole.scores[name] for name in whole.scores if "per_second" in name or "runtime" in name},
    }


@pytest.mark.full
def test_the_model_can_train_along_and_controls_keep_as_many(tmp_path):
    outcome = train(tmp_path / "full", mode="full")
    assert (outcome.model / "model.safetensors").is_file() and outcome.spec
    control = train(tmp_path / "random", mode="full", masks="random", least_keep=0.25, most_keep=0.25)
    assert control.spec == "" and control.scores["image_keep"] == pytest.approx(0.25)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_learned_choice_of_a_tenth_beats_a_random_one(tmp_path):
    """Colours are asked for: what matters is where the objects are."""
    sizes = {"width": 64, "heads": 2, "feedforward": 128, "batch_size": 4, "predictor_rate": 2e-3}
    config = SelectorConfig(steps=50, precision="fp32", keep=0.1, query="text", **sizes)
    rows = DemoConversations(200, only="color", block=4)
    outcome = train_predictors(load_demo, rows, tmp_path / "run", config, console=Console(quiet=True))
    model, processor = load_demo()
    test = DemoConversations(40, "test", only="color")
    asked, right = [test.ask(index) for index in range(40)], {}
    for plan in (outcome.spec, "random(site=pre_llm, keep=0.1)"):
        with foveate.attach(model, plan):
            answers = generate_answers(model, processor, asked, 2)
        right[plan] = sum(answer == question.answer for answer, (_, question) in zip(answers, asked, strict=True))
    assert right[outcome.spec] >= right["random(site=pre_llm, keep=0.1)"] + 4, right
