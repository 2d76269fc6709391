"""Property tests: random plans on random batches with random padding pass oracles A to D on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foveate
from foveate import families, methods
from foveate.core.budget import Budget
from foveate.core.method import Method
from foveate.core.plan import Plan, Scope, Stage
from foveate.core.site import Site
from foveate.engine.attachment import Attachment
from tests import tiny
from tests.examples import acts_on_pictures, counts_by_itself, everything_kept, with_path
from tests.marks import one_and_more
from tests.options import with_options
from tests.oracles.dense_reference import dense_reference
from tests.oracles.stages import alive_by_layer, merged_by_layer
from tests.spies import real

LOGITS = 2e-4  # fp32 sums in another order, logits of size 10
ANCHORS_FIRST = sorted(tiny.ALL_FAMILIES, key=lambda family: family not in tiny.FAMILIES)
every_family = pytest.mark.parametrize("family", one_and_more(ANCHORS_FIRST))
# A busy machine is no failure, and a model is made once per process.
examples = settings(max_examples=8, derandomize=True, suppress_health_check=list(HealthCheck))
ROUNDING = 1e-5
KEEPS = ["0.2", "0.5", "90%", "1tok", "7"]


@st.composite
def plans(draw: st.DrawFn, family: str, path: str, *, counted: bool = True, across: bool = True) -> Plan:
    """One to three stages at ascending layers, of any methods with any options; scopes that only widen.

    Args:
        path: predictors for methods with trained weights.
        counted: whether methods that fix their own count may be among them.
        across: whether tokens may merge across media; a trace follows them within their medium only.
    """
    full, described = tiny.full_layers(family), families.get(family).encoder(tiny.probed(family)) is not None
    count = draw(st.integers(1, 3))
    where = sorted(draw(st.lists(st.sampled_from(tiny.valid_layers(family)), min_size=count, max_size=count, unique=True)))
    scopes = sorted(draw(st.lists(st.sampled_from(Scope), min_size=count, max_size=count)), key=_width)
    stages: list[Stage] = []
    for layer, scope in zip(where, scopes, strict=True):
        site = Site.llm_layer(layer) if layer else Site.pre_llm()

        def serves(method: Method, site: Site = site, scope: Scope = scope) -> bool:
            seen = not any(need.attends for need in method.needs()) or any(below < (site.layer or 0) for below in full)
            seen = seen and (described or not any(need.encodes for need in method.needs()))
            grid = not method.needs_grid or (not stages and scope is not Scope.SAMPLE)
            apart = across or not method.merges or scope is not Scope.SAMPLE
            counts = counted or not counts_by_itself(method)
            return acts_on_pictures(method, site.kind) and seen and grid and apart and counts

        names = [name for name in methods.names() if any(map(serves, methods.get(name).examples()))]
        method = draw(st.sampled_from(names).flatmap(lambda name: with_options(methods.get(name))).filter(serves))
        keep = None if counts_by_itself(method) else Budget.read(draw(st.sampled_from(KEEPS)))
        stages.append(Stage(site, with_path(method, path), keep, scope))
    return Plan(tuple(stages))


def _width(scope: Scope) -> int:
    return [Scope.CROP, Scope.FRAME, Scope.MEDIUM, Scope.SAMPLE].index(scope)


@st.composite
def batches(draw: st.DrawFn, family: str, side: str | None = None) -> tuple[list[tiny.Row], dict[str, torch.Tensor]]:
    """One to three rows with none to three images each, at least one image in all."""
    maker = tiny.Maker(family, seed=draw(st.integers(0, 99)))
    counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any))
    rows = []
    for count in counts:
        pieces: list[Any] = [maker.text(draw(st.integers(1, 5)))]
        for _ in range(count):
            pieces += [maker.picture(), maker.text(draw(st.integers(1, 4)))]
        rows.append(tiny.Row(pieces))
    side = side or draw(st.sampled_from(["left", "right"]))
    return rows, maker.inputs(rows, side=side)


@every_family
@examples
@given(data=st.data())
def test_b_random_plans_equal_the_dense_reference(model_of, predictors_of, family, data):
    model = model_of(family)
    plan = data.draw(plans(family, predictors_of(family), across=False))
    _, inputs = data.draw(batches(family))
    inputs["use_cache"] = not tiny.remembers(family)
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        pruned = model(**inputs).logits
        trace = attachment.trace
    alive, merged = alive_by_layer(trace, plan, inputs), merged_by_layer(trace, plan, inputs)
    with torch.no_grad(), dense_reference(model, alive, merged):
        reference = model(**inputs).logits
    everywhere = real(inputs)
    for columns in alive.values():
        everywhere = everywhere & columns
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS


@every_family
@examples
@given(data=st.data())
def test_c_and_d_random_batches_equal_their_rows_alone(model_of, predictors_of, family, data):
    model = model_of(family)
    plan = data.draw(plans(family, predictors_of(family)))
    rows, inputs = data.draw(batches(family, side="left"))
    alone = tiny.Maker(family)
    with foveate.attach(model, plan) as attachment:
        together = tiny.generate(model, inputs, tokens=3)
        kept = [[entry.kept_index.tolist() for entry in attachment.trace.sample(row)] for row in range(len(rows))]
        for number, row in enumerate(rows):
            single = tiny.generate(model, alone.inputs([row]), tokens=3)
            assert torch.equal(together.sequences[number, -3:], single.sequences[0, -3:])
            difference = max(float((a[number] - b[0]).abs().max()) for a, b in zip(together.logits, single.logits, strict=True))
            assert difference < LOGITS
            if kept[number]:
                assert [entry.kept_index.tolist() for entry in attachment.trace] == kept[number]
        # What looks at attention chooses anew without a cache.
        if not any(need.attends for stage in plan.stages for need in stage.method.needs()):
            uncached = tiny.generate(model, inputs, tokens=3, use_cache=False)
            assert tiny.greatest_difference(uncached, together) < LOGITS


@every_family
@examples
@given(data=st.data())
def test_a_random_plans_that_keep_everything_are_bit_identical(model_of, predictors_of, family, data):
    model = model_of(family)
    plan = data.draw(plans(family, predictors_of(family), counted=False))
    _, inputs = data.draw(batches(family))
    inputs["use_cache"] = not tiny.remembers(family)  # which refuses padding on the right
    plain = model(**inputs).logits.detach()
    with torch.no_grad(), Attachment(model, Plan(everything_kept(plan.stages)), shortcut=data.draw(st.booleans())):
        logits = model(**inputs).logits
    if tiny.has_experts(family):
        # An expert takes padding among its tokens, and holes on the right hold other states: sums in another order.
        assert float((logits - plain)[real(inputs)].abs().max()) < ROUNDING
    else:
        assert torch.equal(logits[real(inputs)], plain[real(inputs)])
