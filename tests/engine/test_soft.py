"""Training under a policy: masked softmax against autograd, and against what dropping computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.engine import soft, soft_attention
from foveate.errors import AttachError, UnsupportedCombination
from tests import tiny
from tests.engine.test_gate import LOGITS
from tests.marks import one_and_more
from tests.trained import random_predictors

PLAN = "dynamic_llava(path='{path}', keep=0.4)"


def batch(family: str = "llava", side: str = "right") -> dict[str, Tensor]:
    """Prompts with answers of unequal length, as in training."""
    maker = tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows, side)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate((4, 5, 7)):
        real = torch.nonzero(inputs["attention_mask"][row]).flatten()[-length:]
        labels[row, real] = inputs["input_ids"][row, real]
    return {**inputs, "labels": labels}


@pytest.fixture(scope="module")
def path(model_of, tmp_path_factory) -> Any:
    known: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in known:
            known[family], _ = random_predictors(
                tmp_path_factory.mktemp(family), model_of(family), inputs=batch(family), layer=tiny.FIRST_LAYER[family]
            )
        return known[family]

    return get


def reference(query: Tensor, key: Tensor, value: Tensor, policy: Tensor, seen: Tensor) -> Tensor:
    """Eq. 7 in one line each, with the whole square in memory."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    score = score.masked_fill(~seen, -torch.inf)
    kept = policy[:, None, None] + (1 - policy[:, None, None]) * torch.eye(query.shape[2], dtype=policy.dtype)
    weight = (score - score.amax(-1, keepdim=True).detach()).exp() * kept
    return (weight / weight.sum(-1, keepdim=True)) @ value


@pytest.mark.parametrize("rows_at_once", [1 << 24, 5 * 2 * 4 * 9])
def test_masked_softmax_and_its_gradients_are_those_of_autograd_in_float64(monkeypatch, rows_at_once):
    monkeypatch.setattr(soft_attention, "_SCORES_AT_ONCE", rows_at_once)
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the computation in float64, so that rounding hides nothing
    torch.manual_seed(0)
    shapes = [(2, 4, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8), (2, 9)]
    parts = [torch.randn(shape, dtype=torch.double) for shape in shapes[:3]] + [torch.rand(2, 9, dtype=torch.double).round()]
    policy = parts[3]
    policy[:, 0], policy[0, 3] = 1.0, 0.0
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1)
    grads = []
    for function in ("ours", "reference"):
        leaves = [part.clone().requires_grad_() for part in parts]
        if function == "ours":
            out, _ = soft_attention.soft_attention(torch.nn.Module(), *leaves[:3], seen, **{soft_attention.POLICY: leaves[3]})
            out = out.transpose(1, 2)
        else:
            out = reference(*leaves, seen)
        (out * torch.arange(out.numel(), dtype=torch.double).view(out.shape).cos()).sum().backward()
        grads.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)
    assert float(grads[0][4][0, 3].abs()) > 0, "a dropped token must have a way back"


@pytest.mark.parametrize("mask", ["none", "flash", "additive"])
def test_masks_of_every_format_say_the_same(mask):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 7, 8) for _ in range(3))
    policy = torch.tensor([[1.0, 0, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0, 1]])
    real = torch.ones(2, 7, dtype=torch.bool)
    if mask != "none":
        real[0, 5:] = False
    seen = torch.ones(7, 7, dtype=torch.bool).tril()[None, None] & real[:, None, None]
    given: Any = {"none": None, "flash": real, "additive": torch.where(seen, 0.0, torch.finfo(torch.float32).min)}[mask]
    out, _ = soft_attention.soft_attention(torch.nn.Module(), query, key, value, given, **{soft_attention.POLICY: policy})
    torch.testing.assert_close(out.transpose(1, 2)[real.any(1)], reference(query, key, value, policy, seen)[real.any(1)])


@pytest.mark.pairs
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_b_validation_sees_what_dropping_computes(model_of, path, family, side):
    """Masked teacher forcing with hard decisions: the same logits wherever the dropped model has any."""
    model, inputs = model_of(family), batch(family, side)
    with torch.no_grad(), foveate.attach(model, PLAN.format(path=path(family)), mode="soft") as attachment:
        masked = model(**inputs).logits
        assert [len(attachment.soft.image_shares), len(attachment.soft.text_shares)] == [3, 3]
    with torch.no_grad(), foveate.attach(model, PLAN.format(path=path(family))) as attachment:
        dropped = model(**inputs).logits
        trace = attachment.trace
    alive = inputs["attention_mask"].bool()
    for entry in trace.media:
        gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
        gone[entry.kept_index] = False
        alive[entry.medium.row, entry.medium.columns[gone]] = False
    assert not torch.stack([kept.all() for kept in trace.answer_kept]).all()
    torch.testing.assert_close(masked[alive], dropped[alive], atol=LOGITS, rtol=0)


WITHOUT_STATES = [family for family in tiny.ALL_FAMILIES if not tiny.remembers(family)]


@pytest.mark.pairs(every_family=True)
@pytest.mark.parametrize("scope", ["medium", "sample"])
@pytest.mark.parametrize("query", ["none", "text"])
@pytest.mark.parametrize(
    "family",
    one_and_more([*tiny.FAMILIES, *(one for one in WITHOUT_STATES if one not in tiny.FAMILIES)], short=len(tiny.FAMILIES)),
)
def test_b_a_selector_in_validation_sees_what_dropping_computes(model_of, path, family, query, scope):
    model, inputs = model_of(family), batch(family)
    plan = f"selector(site=pre_llm, keep=0.4, query={query}, scope={scope}, path='{path(family)}')"
    with torch.no_grad(), foveate.attach(model, plan, mode="soft") as attachment:
        masked = model(**inputs).logits
        assert len(attachment.soft.image_shares) >= 2
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        dropped, live = model(**inputs).logits, attachment.live_columns
    live &= inputs["attention_mask"].bool()
    assert not bool(live.all())
    torch.testing.assert_close(masked[live], dropped[live], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_reach_the_predictors_and_the_layers_below(path, family):
    model = tiny.tiny_model(family).train()
    attachment = foveate.attach(model, PLAN.format(path=path(family)), mode="soft")
    attachment.soft.least_answer = 0
    modules = attachment.modules
    for module in modules.values():
        module.requires_grad_(True).train()
    torch.manual_seed(0)
    loss = model(**batch(family)).loss
    loss.backward()
    for module in modules.values():
        assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in module.parameters())
        assert any(float(parameter.grad.abs().max()) > 0 for parameter in module.parameters())
    below = tiny.decoder_of(model).layers[0]
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in below.parameters() if parameter.requires_grad)
    attachment.detach()


@pytest.mark.since((5, 23), "before, checkpointing replays hooks inside backward")
def test_checkpointing_draws_once_and_gives_the_same_gradients(path):
    grads = []
    for checkpointed in (False, True):
        model = tiny.tiny_model("llava").train()
        if checkpointed:
            model.activation_checkpointing_enable()
        with foveate.attach(model, PLAN.format(path=path("llava")), mode="soft") as attachment:
            attachment.soft.least_answer = 0
            torch.manual_seed(3)
            model(**batch()).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-5, rtol=1e-4)


def test_the_penalty_by_hand():
    mode = soft.SoftMode()
    mode.image_shares = [torch.tensor(0.5), torch.tensor(0.1)]
    mode.text_shares = [(torch.tensor(0.7), 60), (None, 3)]
    expected = ((0.5 - 0.2) ** 2 + (0.1 - 0.2) ** 2) / 2 + (0.7 - 0.5) ** 2 / 2
    assert float(mode.penalty(0.2, 0.5)) == pytest.approx(expected)
    assert float(soft.SoftMode().penalty(0.2, 0.5)) == 0


def test_short_answers_are_kept_whole_in_training_and_judged_in_validation(model_of, path):
    model, inputs = model_of("llava"), batch()
    with foveate.attach(model, PLAN.format(path=path("llava")), mode="soft") as attachment:
        attachment.soft.least_answer = 6
        model.train()
        try:
            model(**inputs)
        finally:
            model.eval()
        assert [(share is None, length) for share, length in attachment.soft.text_shares] == [(True, 4), (True, 5), (False, 7)]
        model(**inputs)
        assert all(share is not None for share, _ in attachment.soft.text_shares)


def test_a_batch_of_short_and_long_answers_has_gradients(path):
    model = tiny.tiny_model("llava").train()
    with foveate.attach(model, PLAN.format(path=path("llava")), mode="soft") as attachment:
        attachment.soft.least_answer = 5
        for module in attachment.modules.values():
            module.requires_grad_(True).train()
        # Rows of 4, 5 and 7 tokens, the short one last: what was decided for a row must not depend on the rows behind it.
        (
            model(**{name: value.flip(0) for name, value in text_batch().items()}).loss + attachment.soft.penalty(0.4, 0.5)
        ).backward()
        text = next(module for stage, module in attachment.modules.items() if stage is attachment.plan.gate)
        assert float(next(text.parameters()).grad.abs().max()) > 0


def text_batch() -> dict[str, Tensor]:
    """Answers of 4, 5 and 7 tokens to prompts without pictures."""
    maker = tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(12)]) for _ in range(3)], "right")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate((4, 5, 7)):
        labels[row, -length:] = inputs["input_ids"][row, -length:]
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("training", [False, True])
def test_random_draws_keep_as_many_and_leave_the_modules_aside(path, training):
    model, inputs = tiny.tiny_model("llava").train(training), batch()
    with foveate.attach(model, PLAN.format(path=path("llava")), mode="soft") as attachment:
        soft_mode = attachment.soft
        soft_mode.draw, soft_mode.least_answer, soft_mode.text_keep = "chance", 0, 0.5
        for module in attachment.modules.values():
            module.forward = None  # calling it would fail
        losses = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            soft_mode.seed = seed
            losses.append(float(model(**inputs).loss.detach()))
            counts = [round(float(share.detach()) * 36) for share in soft_mode.image_shares]
            assert counts == [round(0.4 * 36)] * 3
    assert losses[0] == losses[1] != losses[2]


def test_random_draws_keep_the_share_of_answers_that_was_asked_for():
    hooks = soft.SoftHooks.__new__(soft.SoftHooks)
    hooks.mode = soft.SoftMode(draw="chance", text_keep=0.3)
    noise = hooks._noise((1, 20_000), torch.device("cpu"), training=False)
    assert abs(float((noise < 0.3).float().mean()) - 0.3) < 0.01


def test_a_low_temperature_draws_what_the_logits_say():
    hooks = soft.SoftHooks.__new__(soft.SoftHooks)
    hooks.mode = soft.SoftMode(tau=0.1)
    torch.manual_seed(0)
    logits = torch.tensor([[3.0, 0.0]]).expand(20_000, 2).requires_grad_()
    drawn = hooks._draw(logits)
    assert set(drawn.detach().unique().tolist()) == {0.0, 1.0}
    assert abs(float(drawn.detach().mean()) - torch.tensor([3.0, 0.0]).softmax(0)[0]) < 0.01


def test_soft_mode_refuses_what_it_cannot_train(model_of, path):
    model = model_of("llava")
    with pytest.raises(UnsupportedCombination, match="trains stages of learned methods"):
        foveate.attach(model, "fastv(layer=2, keep=0.5)", mode="soft")
    with pytest.raises(AttachError, match='write "hard", or "soft"'):
        foveate.attach(model, PLAN.format(path=path("llava")), mode="softly")
    inputs = {name: value for name, value in batch(side="left").items() if name != "labels"}
    with (
        foveate.attach(model, PLAN.format(path=path("llava")), mode="soft"),
        pytest.raises(UnsupportedCombination, match="attach without it to generate"),
    ):
        model.generate(**inputs, max_new_tokens=3)


def test_f_detaching_leaves_no_trace(model_of, path):
    model, inputs = model_of("llava"), batch()
    configs = [getattr(module, "config", None) for module in model.modules()]
    with torch.no_grad():
        plain = model(**inputs).logits
        with foveate.attach(model, PLAN.format(path=path("llava")), mode="soft"):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, plain)
    assert all(a is b for a, b in zip(configs, (getattr(m, "config", None) for m in model.modules()), strict=True))
