"""Oracles A-D, F, G of every method on every family, backend and batch.

A keep-all is bit-identical, B pruned == dense reference, C batch == each row alone, D cached == uncached,
F attach + detach leaves no trace, G merges == dense reference with merged states.
"""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.trace import Trace
from foveate.engine.attachment import Attachment
from foveate.spec import parse
from tests import tiny
from tests.oracles.controls import pool_matrices, uniform_kept
from tests.oracles.dense_reference import dense_reference, eager_attention
from tests.oracles.fastv import fastv_kept
from tests.spies import settled_state, state_of

# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
BACKENDS = ("sdpa", "eager")
BATCHES = (1, 3)

PLANS = {
    "fastv": "fastv(layer={k}, keep=0.3)",
    "fastv-count": "fastv(layer={k}, keep=7)",
    "fastv-text": "fastv(layer={k}, keep=0.5, query=text)",
    "fastv-all": "fastv(layer={k}, keep=0.5, query=all)",
    "fastv-window": "fastv(layer={k}, keep=0.4, query=window:3, topk=window:2)",
    "fastv-no-rope": "fastv(layer={k}, keep=0.5, rope=off)",
    "random": "random(layer={k}, keep=0.4, seed=3)",
    "random-pre": "random(site=pre_llm, keep=0.5)",
    "uniform": "uniform(layer={k}, keep=0.25)",
    "two-stages": "random(site=pre_llm, keep=0.6) | fastv(layer={k}, keep=0.5)",
    "three-stages": "uniform(site=pre_llm, keep=0.8) | fastv(layer={k}, keep=0.6) | fastv(layer={k2}, keep=0.4)",
    "sample-scope": "fastv(layer={k}, keep=0.4, scope=sample)",
}


every_family = pytest.mark.parametrize("family", tiny.ALL_FAMILIES)


def plan_for(name: str, family: str) -> str:
    return PLANS[name].format(k=tiny.FIRST_LAYER[family], k2=tiny.SECOND_LAYER[family])


def alive_columns(trace: Trace, inputs: dict[str, Tensor], rows: Tensor | None = None) -> dict[int, Tensor]:
    """{layer: [B, S] bool}: what the trace says about the columns of the prompt."""
    alive: dict[int, Tensor] = {}
    stages = [text for text, _ in trace.media[0].stages] if trace.media else []
    for number, text in enumerate(stages):
        layer = 0 if "site=pre_llm" in text else int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        columns = torch.ones(inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer] = columns
    return alive


def real(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["attention_mask"].bool()


@pytest.fixture(scope="module")
def models() -> tiny.Models:
    return tiny.Models()


def matrix(*plans: str) -> pytest.MarkDecorator:
    """Families x backends x batches x plans."""
    cases = [*product(tiny.ALL_FAMILIES, BACKENDS, BATCHES, plans)]
    return pytest.mark.parametrize(("family", "backend", "batch", "plan"), cases)


@pytest.mark.pairs(every_family=True)
@pytest.mark.matrix
@matrix("fastv", "two-stages", "random")
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_keeping_everything_is_bit_identical(models, family, backend, batch, plan, shortcut):
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    everything = parse(
        plan_for(plan, family).replace("0.3", "100%").replace("0.6", "100%").replace("0.5", "100%").replace("0.4", "100%")
    )
    plain = tiny.generate(model, inputs)
    plain_logits = model(**inputs).logits.detach()
    with Attachment(model, everything, shortcut=shortcut):
        kept = tiny.generate(model, inputs)
        logits = model(**inputs).logits.detach()
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    assert torch.equal(logits[real(inputs)], plain_logits[real(inputs)])


@pytest.mark.pairs(every_family=True)
@pytest.mark.matrix(caches=("dynamic", "uncached"))
@matrix(*PLANS)
def test_b_pruned_equals_the_dense_reference(models, family, backend, batch, plan):
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    with torch.no_grad(), foveate.attach(model, plan_for(plan, family)) as attachment:
        pruned = model(**inputs).logits
        alive = alive_columns(attachment.trace, inputs)
        answer = tiny.generate(model, inputs)
    with torch.no_grad(), dense_reference(model, alive):
        reference = model(**inputs).logits
    plain = model(**inputs).logits.detach()
    everywhere = real(inputs)
    for columns in alive.values():
        everywhere = everywhere & columns
    assert not all(bool(columns.all()) for columns in alive.values())
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert float((pruned[:, -1] - plain[:, -1]).abs().max()) > 100 * LOGITS, "pruning that changes nothing proves nothing"
    assert bool((pruned[~everywhere & real(inputs)] == 0).all()), "logits at pruned positions are those of a zero state"
    # D: the cached answer equals the dense reference that recomputes everything at every step.
    with dense_reference(model, alive):
        dense = tiny.generate(model, inputs, use_cache=False)
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.pairs
@pytest.mark.matrix(caches=("uncached",), padding="right")
@matrix("fastv", "two-stages", "fastv-all")
def test_b_rows_padded_on_the_right_equal_the_dense_reference(models, family, backend, batch, plan):
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch), side="right")
    with torch.no_grad(), foveate.attach(model, plan_for(plan, family)) as attachment:
        pruned = model(**inputs).logits
        alive = alive_columns(attachment.trace, inputs)
    with torch.no_grad(), dense_reference(model, alive):
        reference = model(**inputs).logits
    everywhere = real(inputs)
    for columns in alive.values():
        everywhere = everywhere & columns
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS


@pytest.mark.pairs(every_family=True)
@pytest.mark.matrix
@matrix("fastv", "two-stages", "fastv-text", "random", "sample-scope")
def test_c_a_row_in_a_batch_equals_the_row_alone(models, family, backend, batch, plan):
    model = models[family, backend]
    maker = tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    maker_alone = tiny.Maker(family)
    with foveate.attach(model, plan_for(plan, family)):
        together = tiny.generate(model, maker.inputs(rows))
        for number, row in enumerate(rows):
            alone = tiny.generate(model, maker_alone.inputs([row]))
            assert torch.equal(together.sequences[number, -6:], alone.sequences[0, -6:])
            difference = max(float((a[number] - b[0]).abs().max()) for a, b in zip(together.logits, alone.logits, strict=True))
            assert difference < LOGITS


@pytest.mark.pairs
@pytest.mark.matrix(caches=("dynamic", "uncached"))
@matrix("random", "uniform", "random-pre")
def test_d_cached_equals_uncached(models, family, backend, batch, plan):
    # These methods choose by position alone, so choosing anew at every uncached step freezes the choice.
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    with foveate.attach(model, plan_for(plan, family)):
        cached = tiny.generate(model, inputs)
        uncached = tiny.generate(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert tiny.greatest_difference(cached, uncached) < LOGITS


@pytest.mark.pairs
@pytest.mark.matrix
@matrix("fastv", "three-stages")
def test_f_attach_and_detach_leave_no_trace(models, family, backend, batch, plan):
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    plain = tiny.generate(model, inputs)
    before, weights = settled_state(model, inputs), copy.deepcopy(model.state_dict())
    with foveate.attach(model, plan_for(plan, family)):
        tiny.generate(model, inputs)
    assert state_of(model) == before
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    again = tiny.generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))


@pytest.mark.pairs
@pytest.mark.matrix(caches=("dynamic", "uncached"), plan="pool")
@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer", ["site=pre_llm", "layer=2"])
def test_g_a_merge_equals_the_dense_reference_with_merged_states(models, family, backend, layer):
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    with torch.no_grad(), foveate.attach(model, f"pool({layer})") as attachment:
        pruned = model(**inputs).logits
        trace = attachment.trace
        answer = tiny.generate(model, inputs)
    alive = alive_columns(trace, inputs)
    width = inputs["input_ids"].shape[1]
    merge = torch.eye(width).repeat(3, 1, 1)
    for entry in trace.media:
        cells = pool_matrices(entry.medium.shape.grids, 2)
        assert len(cells) == len(entry.kept_index)
        for token, cell in zip(entry.kept_index.tolist(), cells, strict=True):
            row = torch.zeros(width)
            for source, weight in cell.items():
                row[entry.medium.columns[source]] = weight
            merge[entry.medium.row, entry.medium.columns[token]] = row
        sources, weights = entry.sources(0)
        assert dict(zip(sources.tolist(), weights.tolist(), strict=True)) == pytest.approx(cells[0])
    k = next(iter(alive))
    with torch.no_grad(), dense_reference(model, alive, {k: merge}):
        reference = model(**inputs).logits
        dense = tiny.generate(model, inputs, use_cache=False)
    everywhere = real(inputs) & alive[k]
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("query", ["last", "text", "all", "window:4"])
def test_fastv_keeps_what_its_plain_loop_twin_keeps(models, family, backend, query):
    model = models[family, backend]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    layer, second = tiny.FIRST_LAYER[family], tiny.SECOND_LAYER[family]
    plan = f"random(site=pre_llm, keep=0.8) | fastv(layer={layer}, keep=0.4, query={query}) | fastv(layer={second}, keep=0.5)"
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        model(**inputs)
        trace = attachment.trace
    alive = alive_columns(trace, inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for number, (stage_layer, ratio, stage_query) in enumerate([(layer, 0.4, query), (second, 0.5, "last")], start=1):
        # Attention is observed at the nearest full layer below the cut.
        observed = max(full for full in tiny.full_layers(family) if full < stage_layer)
        before = {k: columns for k, columns in alive.items() if k < stage_layer}
        attention = eager_attention(model, inputs, before)[observed]
        for entry in trace.media:
            row, columns = entry.medium.row, entry.medium.columns
            arriving = columns[entry.kept[number - 1]].tolist()
            real_columns = torch.nonzero(mask[row]).flatten().tolist()
            reachable = [c for c in real_columns if all(bool(a[row, c]) for a in before.values())]
            raters = {"last": reachable[-1:], "all": reachable}.get(stage_query)
            if stage_query == "text":
                last = max(c for c in real_columns if int(ids[row, c]) == tiny.IMAGE)
                raters = [c for c in real_columns if c > last]
            elif stage_query.startswith("window"):
                raters = real_columns[-4:]
            keep = int(len(arriving) * ratio + 0.5)
            if stage_query == "all" and number == 1:
                raters = real_columns if not before else [c for c in real_columns if bool(before[0][row, c])]
            expected = fastv_kept(attention, row, arriving, raters, keep)
            assert columns[entry.kept[number]].tolist() == expected


@pytest.mark.pairs
@every_family
def test_uniform_keeps_what_its_twin_keeps(models, family):
    model = models[family, "sdpa"]
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 2))
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.3)") as attachment:
        model(**inputs)
        for entry in attachment.trace:
            count = entry.medium.shape.grid_tokens
            assert entry.kept_index.tolist() == uniform_kept(count, int(count * 0.3 + 0.5))
