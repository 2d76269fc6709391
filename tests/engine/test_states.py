"""Layers that carry a state instead of attending: what they may see, what they remember, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import families
from foveate.core.plan import Plan
from foveate.engine.attachment import Attachment
from foveate.engine.cache_kinds import stored_bytes
from foveate.engine.compat import CACHE, cache_in
from foveate.engine.soft import SoftMode
from foveate.errors import PlanError, UnsupportedCombination
from foveate.spec import parse
from tests import tiny
from tests.engine.test_gate import PLANS as GATES
from tests.engine.test_gate import TOKENS, answers, columns_left, extended, gate_layer, plan_for, rejected_columns
from tests.marks import one_and_more
from tests.oracles.dense_reference import decoder_layers, dense_reference, mixer_of, without_the_gone
from tests.oracles.gated_reference import gated_reference
from tests.oracles.stages import alive_by_layer

HYBRIDS = [family for family in tiny.ALL_FAMILIES if tiny.remembers(family)]
DROP = "random(layer=1, keep=0.5)"

every_hybrid = pytest.mark.parametrize("family", one_and_more(HYBRIDS))


def inputs_of(family: str, batch: int = 3, side: str = "left") -> dict[str, Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch), side)


def token_by_token(mixer: Any, hidden: Tensor, kwargs: dict[str, Any], alive: Tensor | None, config: Any) -> Tensor:
    """The twin of `without_the_gone`: a loop over columns that skips the gone, one step of the recurrence at a time."""
    from transformers import DynamicCache

    mask = kwargs.get("attention_mask")
    there = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    if alive is not None:
        there = there & torch.nn.functional.pad(alive, (0, hidden.shape[1] - alive.shape[1]), value=True)
    out = torch.zeros_like(hidden)
    for row in range(len(hidden)):
        cache = DynamicCache(config=config)
        for column in there[row].nonzero().flatten().tolist():
            one = hidden[row : row + 1, column : column + 1]
            made = type(mixer).forward(mixer, hidden_states=one, **{CACHE: cache})
            out[row, column] = (made[0] if isinstance(made, tuple) else made)[0, 0]
    return out


@every_hybrid
def test_the_reference_equals_a_loop_that_skips_dropped_columns(model_of, family):
    model = model_of(family)
    config = tiny.decoder_of(model).config
    mixer = next(mixer for layer in decoder_layers(model) if (mixer := mixer_of(layer)) is not None)
    torch.manual_seed(0)
    hidden, alive, there = torch.randn(2, 21, config.hidden_size), torch.rand(2, 18) > 0.4, torch.ones(2, 21).long()
    there[0, :4] = 0
    with torch.no_grad():
        gathered = without_the_gone(mixer, hidden, {"attention_mask": there}, alive)
        looped = token_by_token(mixer, hidden, {"attention_mask": there}, alive, config)
        dense = without_the_gone(mixer, hidden, {"attention_mask": there}, None)
    torch.testing.assert_close(gathered, looped, atol=1e-5, rtol=1e-4)
    assert (gathered - dense).abs().max() > 1e-3


@every_hybrid
@pytest.mark.parametrize("plan", one_and_more([DROP, "fastv(layer={k}, keep=0.4)", "random(site=pre_llm, keep=0.4)"]))
def test_layers_with_a_state_see_the_survivors_only(model_of, family, plan):
    model, inputs = model_of(family), inputs_of(family)
    plan = plan.format(k=tiny.FIRST_LAYER[family])
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        logits = model(**inputs).logits
        alive = alive_by_layer(attachment.trace, attachment.plan, inputs)
    with torch.no_grad(), dense_reference(model, alive):
        reference = model(**inputs).logits
    plain = model(**inputs).logits.detach()
    assert (logits[:, -1] - reference[:, -1]).abs().max() < tiny.LOGITS
    assert (logits[:, -1] - plain[:, -1]).abs().max() > 100 * tiny.LOGITS


@every_hybrid
@pytest.mark.parametrize("text", one_and_more(GATES, 2))
def test_attention_forgets_what_a_gate_rejects_and_states_remember_it(model_of, family, text):
    model, inputs = model_of(family), inputs_of(family)
    length = inputs["input_ids"].shape[1]
    with foveate.attach(model, plan_for(family, text)) as attachment:
        answer = answers(model, inputs)
        trace = attachment.trace
        if "fastv" not in text:
            uncached = answers(model, inputs, use_cache=False)
            assert tiny.greatest_difference(answer, uncached) < tiny.LOGITS
    alive = columns_left(trace, [stage for stage, _ in trace.media[0].stages], length, 3)
    longer, recent = extended(inputs, answer.sequences, family), 3 if "recent=3" in text else 1
    with torch.no_grad(), gated_reference(model, gate_layer(family), rejected_columns(trace, length), recent, alive):
        logits = model(**longer, use_cache=False).logits
    for step in range(TOKENS):
        torch.testing.assert_close(answer.logits[step], logits[:, length - 1 + step], atol=tiny.LOGITS, rtol=0)


@every_hybrid
def test_padding_on_the_right_is_refused_with_a_cache(model_of, family):
    model, inputs = model_of(family), inputs_of(family, side="right")
    with torch.no_grad(), foveate.attach(model, DROP):
        with pytest.raises(UnsupportedCombination, match="pad on the left"):
            model(**inputs, use_cache=True)
        model(**inputs, use_cache=False)


@every_hybrid
def test_pictures_behind_cached_columns_need_rows_of_one_length(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    pieces = [[maker.text(4), maker.picture(0), maker.text(5)] for _ in range(2)]
    inputs = maker.inputs([tiny.Row(row) for row in pieces])
    with foveate.attach(model, DROP):
        first = tiny.generate(model, inputs)
        more = maker.inputs([tiny.Row([maker.text(length), maker.picture(0), maker.text(2)]) for length in (2, 3)])
        ids = torch.cat([first.sequences, more["input_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(first.sequences), more["attention_mask"]], dim=1)
        whole = maker.inputs([tiny.Row([*row, maker.text(6), maker.picture(0)]) for row in pieces])
        turn = {**whole, **maker.side_inputs(ids), "input_ids": ids, "attention_mask": mask, CACHE: cache_in(first)}
        with pytest.raises(UnsupportedCombination, match="behind cached columns"):
            tiny.generate(model, turn)


@every_hybrid
def test_what_no_mask_can_express_is_refused(model_of, family):
    model = model_of(family)
    title = families.get(family).title
    with pytest.raises(UnsupportedCombination, match=f"{title} has layers without attention.*effect=drop"):
        foveate.attach(model, f"fastv(layer={tiny.FIRST_LAYER[family]}, keep=0.5, effect=mask)")
    with pytest.raises(UnsupportedCombination, match=f"{title} has layers without attention"):
        Attachment(model, Plan(parse(DROP).stages), soft=SoftMode(1.0, {}))
    assert not any(module._forward_pre_hooks for module in model.modules())


@every_hybrid
def test_the_bytes_of_states_are_counted_and_stay_what_they_are(model_of, family):
    model, inputs = model_of(family), inputs_of(family, 1)
    config = families.get(family).model_shape(model.config)
    from foveate.cost.kv_bytes import state_bytes

    held = []
    for plan in ("none", "random(site=pre_llm, keep=0.25)"):
        with torch.no_grad(), foveate.attach(model, plan):
            cache = cache_in(model(**inputs, use_cache=True))
        keys = sum(
            layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if getattr(layer, "keys", None) is not None
        )
        assert stored_bytes(cache) - keys == state_bytes(config.decoder, dtype_bytes=4)
        held.append(keys)
    assert held[1] < held[0]


def test_no_stage_finds_attention_below_the_first_layer_that_attends():
    from foveate.engine.check import check_plan

    family = families.get("qwen3_5")
    config = family.tiny_config()
    config.text_config.layer_types = ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2
    plan = partial(check_plan, family=family, config=config)
    assert plan(parse("fastv(layer=5, keep=0.5)")) == {5: 3}
    with pytest.raises(PlanError, match="the smallest valid layer is 4"):
        plan(parse("fastv(layer=3, keep=0.5)"))
