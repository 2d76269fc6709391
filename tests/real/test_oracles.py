"""On pretrained weights, 12 encoder and 30 decoder layers: equalities, bytes, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.api.measuring import cache_in, lasting_bytes
from tests import tiny
from tests.real.conftest import SIDE
from tests.spies import settled_state, state_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

TOKENS = 8
# Padding changes the order of float32 sums; logits are around 15. Measured: 6e-5.
PADDED = 1e-3
PLANS = (
    "fastv(layer=2, keep={keep})",
    "random(site=pre_llm, keep={keep})",
    "partition(site=vision, layer=6, keep={keep})",
    "illava_v2(site=vision, layer=6, keep={keep}) | fastv(layer=15, keep={keep})",
    "uniform(layer=29, keep={keep}) | random_gate(layer=2, keep={keep}, recent=0)",
)
TEXTS = ("Look at this.[picture]What is in the picture?", "One two three four five six seven.[picture]Count on:")


@pytest.mark.parametrize("plan", PLANS)
def test_keeping_everything_changes_no_bit(real, prompt, plan):
    model, inputs = real[0], prompt(*TEXTS)
    plain = tiny.generate(model, inputs, TOKENS)
    with foveate.attach(model, plan.format(keep="100%")):
        kept = tiny.generate(model, inputs, TOKENS)
    assert torch.equal(plain.sequences, kept.sequences)
    assert tiny.greatest_difference(plain, kept) == 0


@pytest.mark.parametrize("plan", PLANS)
def test_a_row_in_a_batch_equals_the_row_alone(real, prompt, plan):
    model, inputs = real[0], prompt(*TEXTS)
    with foveate.attach(model, plan.format(keep="0.5")):
        together = tiny.generate(model, inputs, TOKENS)
        for row, real_ones in enumerate(inputs["attention_mask"].bool()):
            columns = {name: inputs[name][row : row + 1, real_ones] for name in ("input_ids", "attention_mask")}
            alone = tiny.generate(model, {**columns, "pixel_values": inputs["pixel_values"][row : row + 1]}, TOKENS)
            for one, other in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(one[row], other[0], atol=PADDED, rtol=0)


@pytest.mark.parametrize("plan", PLANS)
def test_bytes_of_the_cache_are_the_predicted_ones(real, prompt, plan):
    model, inputs = real[0], prompt(TEXTS[0])
    plan = plan.format(keep="0.5")
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    with foveate.attach(model, plan) as attachment:
        found = lasting_bytes(cache_in(tiny.generate(model, inputs, 1)))
        assert found == attachment.report().prefill_kv_bytes
    predicted = foveate.estimate(model, plan, [(SIDE, SIDE)], text_tokens=text, max_new_tokens=0, dtype="float32")
    assert found == predicted.kv_bytes.plan < predicted.kv_bytes.plain


@pytest.mark.parametrize("plan", PLANS)
def test_detaching_leaves_no_trace(real, prompt, plan):
    model, inputs = real[0], prompt(TEXTS[0])
    plain, before = tiny.generate(model, inputs, TOKENS), settled_state(model, inputs)
    with foveate.attach(model, plan.format(keep="0.5")):
        pruned = tiny.generate(model, inputs, TOKENS)
    assert state_of(model) == before
    assert tiny.greatest_difference(plain, tiny.generate(model, inputs, TOKENS)) == 0
    assert tiny.greatest_difference(plain, pruned) > 0
