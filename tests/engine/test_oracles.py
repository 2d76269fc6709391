"""Oracles A-D, F, G of every method and recipe on every family, backend and batch.

A keep-all is bit-identical, B pruned == dense reference, C batch == each row alone, D cached == uncached,
F attach + detach leaves no trace, G merges == dense reference with merged states, which B does in one go.
Which plans those are follows from what methods and recipes say of themselves (tests/examples.py).
"""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch

import foveate
from foveate.core.plan import Plan
from foveate.engine.attachment import Attachment
from foveate.errors import UnsupportedCombination
from foveate.spec import parse
from tests import examples, tiny
from tests.oracles.controls import pool_matrices, uniform_kept
from tests.oracles.dense_reference import dense_reference, eager_attention
from tests.oracles.fastv import fastv_kept
from tests.oracles.stages import alive_by_layer, merged_by_layer
from tests.spies import real, settled_state, state_of

BACKENDS = ("sdpa", "eager")
BATCHES = (1, 3)

every_family = pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
KEEPABLE = [plan for plan in examples.three_stages() if not any(map(examples.counts_by_itself, examples.methods_in(plan)))]
CACHED = [
    plan
    for plan in (*examples.first_plans(), *examples.gated_plans(firsts_only=True))
    if not any(need.attends for method in examples.methods_in(plan) for need in method.needs())
]


# On every family: each method between two others, and each at its places.
EVERY_METHOD = list(dict.fromkeys([*examples.three_stages(), *examples.first_plans()]))


def matrix(*plans: str, elsewhere: int | None = None) -> pytest.MarkDecorator:
    """Families x backends x batches x plans; on families that are no anchors the first `elsewhere` plans, None for all."""
    cases = [
        (family, backend, batch, plan)
        for family, backend, batch in product(tiny.ALL_FAMILIES, BACKENDS, BATCHES)
        for plan in (plans if family in tiny.FAMILIES else plans[:elsewhere])
        if examples.fits(plan, family)
    ]
    return pytest.mark.parametrize(("family", "backend", "batch", "plan"), cases)


@pytest.mark.pairs
@pytest.mark.matrix
@matrix(*KEEPABLE)
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_keeping_everything_is_bit_identical(model_of, placed, family, backend, batch, plan, shortcut):
    model, maker = model_of(family, backend), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    everything = Plan(examples.everything_kept(parse(placed(plan, family)).stages))
    plain = tiny.generate(model, inputs)
    plain_logits = model(**inputs).logits.detach()
    with Attachment(model, everything, shortcut=shortcut):
        kept = tiny.generate(model, inputs)
        logits = model(**inputs).logits.detach()
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    assert torch.equal(logits[real(inputs)], plain_logits[real(inputs)])


def check_against_the_reference(model, inputs, plan):
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        pruned = model(**inputs).logits
        alive = alive_by_layer(attachment.trace, attachment.plan, inputs)
        merged = merged_by_layer(attachment.trace, attachment.plan, inputs)
        answer = tiny.generate(model, inputs)
    with torch.no_grad(), dense_reference(model, alive, merged):
        reference = model(**inputs).logits
        # D: the cached answer equals the dense reference that recomputes everything at every step.
        dense = tiny.generate(model, inputs, use_cache=False)
    plain = model(**inputs).logits.detach()
    everywhere = real(inputs)
    for columns in alive.values():
        everywhere = everywhere & columns
    assert not all(bool(columns.all()) for columns in alive.values())
    assert float((pruned - reference)[everywhere].abs().max()) < tiny.LOGITS
    assert float((pruned[:, -1] - plain[:, -1]).abs().max()) > 100 * tiny.LOGITS, "pruning that changes nothing proves nothing"
    assert bool((pruned[~everywhere & real(inputs)] == 0).all()), "logits at pruned positions are those of a zero state"
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < tiny.LOGITS


@pytest.mark.pairs(every_family=True)
@pytest.mark.matrix(caches=("dynamic", "uncached"))
@matrix(*EVERY_METHOD, *examples.single_plans(), elsewhere=len(EVERY_METHOD))
def test_b_and_g_pruned_and_merged_equals_the_dense_reference(model_of, placed, family, backend, batch, plan):
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    check_against_the_reference(model_of(family, backend), inputs, placed(plan, family))


@pytest.mark.pairs
@pytest.mark.matrix
@matrix(*examples.recipe_plans(), elsewhere=0)
def test_b_and_g_recipes_equal_the_dense_reference(model_of, placed, family, backend, batch, plan):
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    check_against_the_reference(model_of(family, backend), inputs, placed(plan, family))


@pytest.mark.pairs
@pytest.mark.matrix(caches=("uncached",), padding="right")
@matrix(*examples.two_stages(), elsewhere=2)
def test_b_rows_padded_on_the_right_equal_the_dense_reference(model_of, placed, family, backend, batch, plan):
    model, maker = model_of(family, backend), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch), side="right")
    with torch.no_grad(), foveate.attach(model, placed(plan, family)) as attachment:
        pruned = model(**inputs, **tiny.padded_on("right", family)).logits
        alive = alive_by_layer(attachment.trace, attachment.plan, inputs)
        merged = merged_by_layer(attachment.trace, attachment.plan, inputs)
    with torch.no_grad(), dense_reference(model, alive, merged):
        reference = model(**inputs, **tiny.padded_on("right", family)).logits
    everywhere = real(inputs)
    for columns in alive.values():
        everywhere = everywhere & columns
    assert float((pruned - reference)[everywhere].abs().max()) < tiny.LOGITS


@pytest.mark.pairs
@pytest.mark.matrix
@matrix(*examples.two_stages("scope=sample"), *examples.text_plans(), *examples.gated_plans(firsts_only=True), elsewhere=6)
def test_c_a_row_in_a_batch_equals_the_row_alone(model_of, placed, family, backend, batch, plan):
    model, maker, alone = model_of(family, backend), tiny.Maker(family), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    with foveate.attach(model, placed(plan, family)):
        together = tiny.generate(model, maker.inputs(rows))
        for number, row in enumerate(rows):
            single = tiny.generate(model, alone.inputs([row]))
            assert torch.equal(together.sequences[number, -6:], single.sequences[0, -6:])
            difference = max(float((a[number] - b[0]).abs().max()) for a, b in zip(together.logits, single.logits, strict=True))
            assert difference < tiny.LOGITS


@pytest.mark.pairs
@pytest.mark.matrix(caches=("dynamic", "uncached"))
@matrix(*CACHED, elsewhere=6)
def test_d_cached_equals_uncached(model_of, placed, family, backend, batch, plan):
    # These methods choose without the decoder's attention, so choosing anew at every uncached step freezes the choice.
    model, maker = model_of(family, backend), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    with foveate.attach(model, placed(plan, family)):
        cached = tiny.generate(model, inputs)
        uncached = tiny.generate(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert tiny.greatest_difference(cached, uncached) < tiny.LOGITS


@pytest.mark.pairs
@pytest.mark.matrix
@matrix(*examples.three_stages(), *examples.text_plans(), *examples.gated_plans(firsts_only=True), elsewhere=1)
def test_f_attach_and_detach_leave_no_trace(model_of, placed, family, backend, batch, plan):
    model, maker = model_of(family, backend), tiny.Maker(family)
    inputs, plan = maker.inputs(tiny.ragged_rows(maker, batch)), placed(plan, family)
    plain = tiny.generate(model, inputs)
    before, weights = settled_state(model, inputs), copy.deepcopy(model.state_dict())
    with foveate.attach(model, plan):
        tiny.generate(model, inputs)
    assert state_of(model) == before
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    again = tiny.generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))


@pytest.mark.pairs
@pytest.mark.matrix(caches=("uncached",))
@matrix(*examples.masked_plans(), elsewhere=1)
def test_hiding_tokens_equals_dropping_them(model_of, placed, family, backend, batch, plan):
    maker, model, plan = tiny.Maker(family), model_of(family, backend), placed(plan, family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    if tiny.remembers(family):
        with pytest.raises(UnsupportedCombination, match="use effect=drop"):
            foveate.attach(model, plan)
        return
    logits = []
    for text in (plan, plan.replace(", effect=mask", ""), "none"):
        with torch.no_grad(), foveate.attach(model, text):
            logits.append(model(**inputs).logits[:, -1])
    hidden, dropped, plain = logits
    assert float((hidden - dropped).abs().max()) < tiny.LOGITS
    assert float((hidden - plain).abs().max()) > 100 * tiny.LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize(("family", "backend", "layer"), [*product(tiny.ALL_FAMILIES, BACKENDS, ["site=pre_llm", "layer=2"])])
def test_pool_merges_what_its_twin_merges(model_of, family, backend, layer):
    model, maker = model_of(family, backend), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    with torch.no_grad(), foveate.attach(model, f"pool({layer})") as attachment:
        model(**inputs)
        trace, plan = attachment.trace, attachment.plan
    (merge,) = merged_by_layer(trace, plan, inputs).values()
    for entry in trace.media:
        cells = pool_matrices(entry.medium.shape.grids, 2)
        assert len(cells) == len(entry.kept_index)
        sources, weights = entry.sources(0)
        assert dict(zip(sources.tolist(), weights.tolist(), strict=True)) == pytest.approx(cells[0])
        for token, cell in zip(entry.kept_index.tolist(), cells, strict=True):
            row = torch.zeros(inputs["input_ids"].shape[1])
            for source, weight in cell.items():
                row[entry.medium.columns[source]] = weight
            torch.testing.assert_close(merge[entry.medium.row, entry.medium.columns[token]], row)


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("family", "backend", "query"), [*product(tiny.ALL_FAMILIES, BACKENDS, ["last", "text", "all", "window:4"])]
)
def test_fastv_keeps_what_its_plain_loop_twin_keeps(model_of, family, backend, query):
    model = model_of(family, backend)
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    layer, second = tiny.FIRST_LAYER[family], tiny.SECOND_LAYER[family]
    plan = f"random(site=pre_llm, keep=0.8) | fastv(layer={layer}, keep=0.4, query={query}) | fastv(layer={second}, keep=0.5)"
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        model(**inputs)
        trace = attachment.trace
    alive = alive_by_layer(trace, attachment.plan, inputs)
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
def test_uniform_keeps_what_its_twin_keeps(model_of, family):
    model = model_of(family)
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 2))
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.3)") as attachment:
        model(**inputs)
        for entry in attachment.trace:
            count = entry.medium.shape.grid_tokens
            assert entry.kept_index.tolist() == uniform_kept(count, int(count * 0.3 + 0.5))
