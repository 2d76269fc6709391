"""Attention backends: eager and SDPA for real, the contracts of flash and flex emulated on the CPU."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import foveate
from foveate import families
from foveate.engine import attention_rows
from foveate.engine.attachment import Attachment
from foveate.engine.compat import CACHE, cache_in
from foveate.spec import parse
from tests import fake_backends, tiny
from tests.fake_backends import FLASH, FLEX
from tests.oracles.dense_reference import eager_attention
from tests.spies import alive_columns, layer_calls, real

# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
# Attention weights are at most 1; both sides compute them in fp32.
WEIGHTS = 1e-5

# Emulated kernels are slow: the other families run the first plan only.
SHORT_FAMILIES = tiny.FULL_ANCHORS
# Flash knows windows and causality only: it counts a window in slots, so that survivors see further back than under the other
# backends, and it cannot show the tokens of one picture to each other. Such families are compared under flex.
WITHOUT_FLASH = {
    *(family for family in tiny.ALL_FAMILIES if tiny.slides(family)),
    *(family for family in tiny.ALL_FAMILIES if families.get(family).bidirectional),
}
# Transformers cuts the states in front of layers that read others' keys, but not under flex, which it knows by its real name.
WITHOUT_FLEX = {name for name in tiny.ALL_FAMILIES if families.get(name).shared_keys(families.get(name).tiny_config())}
PLANS = {
    "fastv": "fastv(layer={k}, keep=0.4)",
    "two": "random(site=pre_llm, keep=0.6) | fastv(layer={k}, keep=0.5, query=text)",
    "mask": "fastv(layer={k}, keep=0.4, effect=mask)",
}


def plan_for(name: str, family: str) -> str:
    return PLANS[name].format(k=tiny.FIRST_LAYER[family])


@pytest.fixture(scope="module", autouse=True)
def _registered():
    fake_backends.register()


class Models(tiny.Models):
    """Tiny models whose decoder runs an emulated backend."""

    def __missing__(self, key):
        family, backend = key
        model = self[key] = tiny.tiny_model(family, "sdpa" if "_" in backend else backend)
        fake_backends.use(model, backend)
        return model


@pytest.fixture(scope="module")
def models():
    return Models()


def prompts(family, batch, side="left"):
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch), side=side)


def runs(family, backend):
    return family not in {FLASH: WITHOUT_FLASH, FLEX: WITHOUT_FLEX}.get(backend, ())


def cases() -> pytest.MarkDecorator:
    """Families x backends x batches x plans."""
    every = [
        (family, backend, batch, plan)
        for family, backend, batch, plan in product(tiny.ALL_FAMILIES, (FLASH, FLEX), (1, 3), PLANS)
        if runs(family, backend) and (family in SHORT_FAMILIES or plan == "fastv")
    ]
    return pytest.mark.parametrize(("family", "backend", "batch", "plan"), every)


def on_backends(*backends: str) -> pytest.MarkDecorator:
    """Families x backends."""
    every = [case for case in product(tiny.ALL_FAMILIES, backends) if runs(*case)]
    return pytest.mark.parametrize(("family", "backend"), every)


@pytest.mark.pairs
@pytest.mark.matrix
@cases()
def test_pruned_equals_pruned_under_sdpa(models, family, backend, batch, plan):
    inputs, plan = prompts(family, batch), plan_for(plan, family)
    with foveate.attach(models[family, "sdpa"], plan):
        expected = tiny.generate(models[family, "sdpa"], inputs)
    fake_backends.packed.clear()
    plain = tiny.generate(models[family, backend], inputs)
    before = list(fake_backends.packed)  # GLM-4.5V hands its layers positions of three axes, which are taken so without a plan
    fake_backends.packed.clear()
    with foveate.attach(models[family, backend], plan):
        answer = tiny.generate(models[family, backend], inputs)
    new = [positions for positions in fake_backends.packed if not any(torch.equal(positions, known) for known in before)]
    assert not new, "gaps in the positions were taken for packed sequences"
    assert torch.equal(answer.sequences, expected.sequences)
    assert tiny.greatest_difference(answer, expected) < LOGITS
    assert tiny.greatest_difference(answer, plain) > 100 * LOGITS


@pytest.mark.pairs
@pytest.mark.matrix(caches=("uncached",), padding="right", plan="fastv")
@on_backends("eager", FLASH, FLEX)
def test_right_padding_equals_right_padding_under_sdpa(models, family, backend):
    inputs = prompts(family, 3, side="right")
    logits = {}
    for name in ("sdpa", backend):
        with torch.no_grad(), foveate.attach(models[family, name], plan_for("fastv", family)):
            logits[name] = models[family, name](**inputs, **tiny.padded_on("right", family)).logits[real(inputs)]
    assert float((logits[backend] - logits["sdpa"]).abs().max()) < LOGITS


@pytest.mark.pairs
@on_backends("eager", "sdpa", FLASH, FLEX)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shortcut", [True, False])
def test_keeping_everything_is_bit_identical(models, family, backend, batch, shortcut):
    model, inputs = models[family, backend], prompts(family, batch)
    plain = tiny.generate(model, inputs, tokens=3)
    with Attachment(model, parse("random(site=pre_llm, keep=100%)"), shortcut=shortcut):
        kept = tiny.generate(model, inputs, tokens=3)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.pairs
@on_backends(FLASH, FLEX)
def test_a_text_turn_on_a_pruned_cache_equals_sdpa(models, family, backend):
    maker = tiny.Maker(family)
    inputs, more = prompts(family, 1), maker.text(5)[None]
    logits = {}
    for name in ("sdpa", backend):
        model = models[family, name]
        with foveate.attach(model, plan_for("fastv", family)):
            first = tiny.generate(model, inputs)
            ids = torch.cat([first.sequences, more], 1)
            again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: cache_in(first)}
            again |= maker.side_inputs(ids)
            logits[name] = tiny.generate(model, again)
    assert tiny.greatest_difference(logits["sdpa"], logits[backend]) < LOGITS


@pytest.mark.pairs
@on_backends("eager", "sdpa", FLASH, FLEX)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("before", [False, True])
def test_probe_scores_equal_eager_output_attentions(models, family, backend, batch, before, monkeypatch):
    inputs = prompts(family, batch)
    measured = []
    rows = attention_rows.attention_rows

    def note(*args, **kwargs):
        measured.append(rows(*args, **kwargs))
        return measured[-1]

    monkeypatch.setattr(attention_rows, "attention_rows", note)
    layer = tiny.FIRST_LAYER[family]
    seen = max(full for full in tiny.full_layers(family) if full < layer)
    plan = f"fastv(layer={layer}, keep=0.5)"
    if before:
        plan = f"random(site=pre_llm, keep=0.5) | {plan}"
    model = models[family, backend]
    with torch.no_grad(), foveate.attach(model, plan) as attachment, layer_calls(model, seen) as calls:
        model(**inputs)
        alive = {0: alive_columns(attachment.trace, inputs)[0]} if before else {}
    attention = eager_attention(models[family, "sdpa"], inputs, alive)[seen]
    assert len(measured) == 1
    for row in range(batch):
        columns = alive[0][row] & real(inputs)[row] if before else torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
        expected = attention[row, :, -1, columns]
        assert float((measured[0][row, :, -expected.shape[1] :] - expected).abs().max()) < WEIGHTS
    assert calls[0]["hidden"].shape[1] == measured[0].shape[2]


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("query", ["all", "text", "window:5"])
def test_rows_of_several_raters_equal_eager_output_attentions(model_of, family, query, monkeypatch):
    inputs = prompts(family, 3)
    model, measured = model_of(family), []
    rows = attention_rows.attention_rows

    def note(*args, **kwargs):
        measured.append((rows(*args, **kwargs), args[3], args[4]))
        return measured[-1][0]

    monkeypatch.setattr(attention_rows, "attention_rows", note)
    monkeypatch.setattr(attention_rows, "_ROWS_AT_ONCE", 48)  # several chunks
    with torch.no_grad(), foveate.attach(model, f"fastv(layer=2, keep=0.5, query={query})"):
        model(**inputs)
    attention = eager_attention(model, inputs, {})[1]
    got, raters, valid = measured[0]
    for row in range(3):
        expected = attention[row][:, raters[row][valid[row]]].mean(1)
        assert float((got[row] - expected).abs().max()) < WEIGHTS
