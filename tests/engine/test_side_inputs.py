"""What layers get besides hidden states: features that a decoder adds between its layers, on tokens that a stage has left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import foveate
from foveate.engine.attach import Attachment
from foveate.engine.projection import Alive
from foveate.engine.side_inputs import add_features
from foveate.spec import Plan, stage_text
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, real

LOGITS = 2e-4
STACKED = "qwen3_vl"
# Stages before, between and behind the layers that get features (0, 1 and 2).
PLANS = {
    "before": "random(site=pre_llm, keep=0.6)",
    "first": "random(layer=1, keep=0.6)",
    "between": "random(site=pre_llm, keep=0.8) | uniform(layer=1, keep=0.7) | random(layer=3, keep=0.5)",
    "behind": "random(layer=4, keep=0.5)",
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def prompts() -> dict[str, torch.Tensor]:
    maker = tiny.Maker(STACKED)
    return maker.inputs(tiny.ragged_rows(maker, 3))


def layers_of(plan: str) -> list[int]:
    return [stage.site.decoder_layer for stage in Plan.parse(plan).stages]


@torch.no_grad()
@every_plan
def test_captured_states_are_the_plain_model_s_when_all_is_kept(model_of, plan):
    model, inputs = model_of(STACKED), prompts()
    plain = model(**inputs, output_hidden_states=True).hidden_states
    for ratio in ("0.5", "0.6", "0.7", "0.8"):
        plan = plan.replace(f"keep={ratio}", "keep=100%")
    with Attachment(model, Plan.parse(plan), stage_text, shortcut=False):
        captured = model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(a[real(inputs)], b[real(inputs)]) for a, b in zip(captured, plain, strict=True))


@torch.no_grad()
@every_plan
def test_captured_states_of_survivors_are_those_of_the_dense_reference(model_of, plan):
    model, inputs = model_of(STACKED), prompts()
    with foveate.attach(model, plan) as attachment:
        captured = model(**inputs, output_hidden_states=True).hidden_states
        alive = dict(zip(layers_of(plan), alive_columns(attachment.trace, inputs), strict=True))
    with dense_reference(model, alive):
        reference = model(**inputs, output_hidden_states=True).hidden_states
    seen = real(inputs)
    for entry, (states, expected) in enumerate(zip(captured, reference, strict=True)):
        # Entry 0 is what enters layer 0, entry i what leaves layer i - 1, before features are added.
        seen = seen & alive.get(max(entry - 1, 0), seen)
        assert float((states - expected)[seen].abs().max()) < LOGITS
        assert bool((states[~seen & real(inputs)] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_each_of_the_features_matters(model_of, missing):
    model, inputs = model_of(STACKED), prompts()
    plain = model(**inputs).logits

    def forget(module: nn.Module, args, kwargs):
        features = list(kwargs["deepstack_visual_embeds"])
        features[missing] = torch.zeros_like(features[missing])
        return args, {**kwargs, "deepstack_visual_embeds": features}

    handle = tiny.decoder_of(model).register_forward_pre_hook(forget, with_kwargs=True)
    try:
        without = model(**inputs).logits
    finally:
        handle.remove()
    assert float((plain - without)[real(inputs)].abs().max()) > 100 * LOGITS


@torch.no_grad()
@every_plan
def test_masking_equals_dropping_where_features_are_stacked(model_of, plan):
    model, inputs = model_of(STACKED), prompts()
    plan = plan.replace("site=pre_llm", "layer=1").partition(" | ")[0]
    with foveate.attach(model, plan):
        dropped = model(**inputs).logits[:, -1]
    with foveate.attach(model, f"{plan[:-1]}, effect=mask)"):
        masked = model(**inputs).logits[:, -1]
    assert float((masked - dropped).abs().max()) < LOGITS


def test_only_layers_with_features_behind_a_stage_get_another_hook(model_of):
    model = model_of(STACKED)
    layers = tiny.decoder_of(model).layers
    for first, expected in ((1, [0, 1, 2, 2, 1]), (4, [0, 0, 0, 0, 1])):
        with foveate.attach(model, f"random(layer={first}, keep=0.5)"):
            assert [len(layer._forward_pre_hooks) for layer in layers] == expected
    with foveate.attach(model, "random(layer=1, keep=0.5, effect=mask)"):
        assert [len(layer._forward_pre_hooks) for layer in layers] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_added_bit_for_bit_as_the_model_adds_them(model_of, dtype):
    random = torch.Generator().manual_seed(0)
    columns = torch.rand(2, 9, generator=random) < 0.5
    hidden = torch.randn(2, 9, 4, generator=random).to(dtype)
    features = torch.randn(int(columns.sum()), 4, generator=random)
    expected = tiny.decoder_of(model_of(STACKED))._deepstack_process(hidden, columns, features)
    assert torch.equal(add_features(hidden, features, columns, None), expected)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[0, 2] = keep[1, 3:6] = False
    alive = Alive.of(keep, keep.sum(1).tolist())
    packed = hidden.gather(1, alive.index[..., None].expand(-1, -1, 4))
    changed = add_features(packed, features, columns, alive)
    for row in range(2):
        assert torch.equal(changed[row, alive.valid[row]], expected[row, keep[row]])
