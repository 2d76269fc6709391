"""What layers get besides hidden states, on tokens that a stage has left: features added between layers, keys of others."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import foveate
from foveate import families
from foveate.core.budget import Budget
from foveate.core.method import ScoreMethod
from foveate.core.plan import Plan, Stage
from foveate.core.site import Site
from foveate.core.view import TokenView
from foveate.engine.attachment import Attachment
from foveate.engine.projection import Alive
from foveate.engine.side_inputs import add_features
from foveate.spec import parse
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, layer_calls, real

LOGITS = 2e-4
STACKED, SHARED = "qwen3_vl", "gemma4"
# Stages before, between and behind the layers that get features (0, 1 and 2).
PLANS = {
    "before": "random(site=pre_llm, keep=0.6)",
    "first": "random(layer=1, keep=0.6)",
    "between": "random(site=pre_llm, keep=0.8) | uniform(layer=1, keep=0.7) | random(layer=3, keep=0.5)",
    "behind": "random(layer=4, keep=0.5)",
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def prompts(family: str = STACKED) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, 3))


def layers_of(plan: str) -> list[int]:
    return [stage.site.decoder_layer for stage in parse(plan).stages]


@torch.no_grad()
@every_plan
def test_captured_states_are_the_plain_model_s_when_all_is_kept(model_of, plan):
    model, inputs = model_of(STACKED), prompts()
    plain = model(**inputs, output_hidden_states=True).hidden_states
    for ratio in ("0.5", "0.6", "0.7", "0.8"):
        plan = plan.replace(f"keep={ratio}", "keep=100%")
    with Attachment(model, parse(plan), shortcut=False):
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


@dataclass(frozen=True)
class Loudest(ScoreMethod):
    """Keeps the tokens of the largest states, and remembers what states it saw."""

    seen: list[torch.Tensor] = field(default_factory=list, compare=False)

    def score(self, view: TokenView) -> torch.Tensor:
        self.seen.append(view.features.clone())
        return view.features.norm(dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("layer", [2, 3])
def test_a_stage_sees_the_features_that_were_added_before_it(model_of, layer):
    model, inputs = model_of(STACKED), prompts()
    # Alone, the model itself adds all that belongs in front of the stage.
    alone, behind = (Stage(Site.llm_layer(layer), Loudest(), Budget.of_ratio(0.5)) for _ in range(2))
    (everything,) = parse("uniform(layer=1, keep=100%)").stages
    logits = []
    for stages in ((alone,), (everything, behind)):
        with Attachment(model, Plan(stages), shortcut=False):
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)
    assert all(torch.equal(a, b) for a, b in zip(alone.method.seen, behind.method.seen, strict=True))


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


def causal_model(backend: str) -> nn.Module:
    """A model with shared keys whose pictures are seen in one direction, so that prompts without padding need no mask."""
    model = tiny.tiny_model(SHARED, backend)
    model.config.get_text_config().use_bidirectional_attention = None
    return model


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("plan", ["fastv(layer=2, keep=0.4)", "uniform(site=pre_llm, keep=0.7) | fastv(layer=4, keep=0.5)"])
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_with_the_keys_of_others_see_survivors_without_any_mask_too(backend, plan, batch):
    model, maker = causal_model(backend), tiny.Maker(SHARED)
    rows = [  # of equal length, with pictures of 20 and of 12 tokens: no padding, but survivors of unequal number
        tiny.Row([maker.text(5), maker.picture(0), maker.text(7)]),
        tiny.Row([maker.text(9), maker.picture(1), maker.text(11)]),
    ][:batch]
    inputs = maker.inputs(rows, mask=False)
    with layer_calls(model, 7) as plain:
        tiny.generate(model, inputs, tokens=1)
    with foveate.attach(model, plan) as attachment, layer_calls(model, 7) as calls:
        answer = tiny.generate(model, inputs, tokens=8)
        alive = dict(zip(layers_of(plan), alive_columns(attachment.trace, inputs), strict=True))
        # Newer versions of transformers run these layers for the last token alone, also in the prefill.
        left = max(int(columns.sum(1).max()) for columns in [torch.stack([*alive.values()]).all(0)])
        assert [call["hidden"].shape[1] for call in calls] == [1 if plain[0]["hidden"].shape[1] == 1 else left] + [1] * 7
        if batch == 1 and backend == "sdpa":
            assert all(call["attention_mask"] is None for call in calls)
    with dense_reference(model, alive):
        dense = tiny.generate(model, inputs, tokens=8, use_cache=False)
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.pairs
@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("last", [1, 3, 30])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_asking_for_the_last_logits_alone_gives_the_last_of_all_logits(model_of, side, last, backend):
    model, maker = model_of(SHARED, backend), tiny.Maker(SHARED)
    rows = [
        tiny.Row([maker.text(5), maker.picture(), maker.text(2)]),  # a long tail reaches into the picture
        tiny.Row([maker.text(3), maker.picture(), maker.text(4), maker.picture(), maker.text(5)]),
        tiny.Row([maker.text(5), maker.picture(), maker.text(1)]),
    ]
    inputs = maker.inputs(rows, side)
    for plan in ("uniform(layer=2, keep=0.4)", "uniform(layer=2, keep=100%)"):
        with Attachment(model, parse(plan), shortcut=False):
            every, some = model(**inputs).logits[:, -last:], model(**inputs, logits_to_keep=last).logits
        seen = real(inputs)[:, -last:]
        assert float((every - some)[seen].abs().max()) < LOGITS


@pytest.mark.parametrize("batch", [1, 3])
def test_masking_equals_dropping_where_keys_are_shared(model_of, batch):
    model, maker = model_of(SHARED), tiny.Maker(SHARED)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    answers = []
    for effect in ("", ", effect=mask"):
        with foveate.attach(model, f"uniform(layer=3, keep=0.3{effect})"):
            answers.append(tiny.generate(model, inputs, tokens=5))
    assert tiny.greatest_difference(*answers) < LOGITS
    assert tiny.greatest_difference(answers[0], tiny.generate(model, inputs, tokens=5)) > 100 * LOGITS


@torch.no_grad()
def test_inputs_per_token_are_those_of_the_survivors(model_of):
    model, inputs = model_of(SHARED), prompts(SHARED)
    place = families.get(SHARED).token_inputs
    assert place == ("per_layer_input",)
    seen: dict[int, torch.Tensor] = {}

    def look(index: int):
        return lambda module, args: seen.__setitem__(index, args[1])

    layers = tiny.decoder_of(model).layers
    with foveate.attach(model, "random(layer=2, keep=0.5)") as attachment:
        handles = [layer.register_forward_pre_hook(look(index)) for index, layer in enumerate(layers)]
        model(**inputs)
        (alive,) = alive_columns(attachment.trace, inputs)
        pruned = dict(seen)
        with attachment.disabled():
            model(**inputs)
    for handle in handles:
        handle.remove()
    alive = alive & real(inputs)
    for index in range(len(layers)):
        for row in range(3):
            expected = seen[index][row, alive[row]] if index >= 2 else seen[index][row]
            assert torch.equal(pruned[index][row, -len(expected) :], expected)
