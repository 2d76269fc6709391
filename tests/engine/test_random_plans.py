"""Property tests: random plans on random batches with random padding pass oracles A to D on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foveate
from foveate.engine.attachment import Attachment
from foveate.spec import parse
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, real

LOGITS = 2e-4  # fp32 sums in another order, logits of size 10
MODELS = tiny.Models()
SCOPES = ("crop", "frame", "medium", "sample")
every_family = pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
# A busy machine is no failure, and a model is made once per process.
examples = settings(max_examples=8, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def plans(draw: st.DrawFn, family: str) -> str:
    """One to three stages at ascending layers, scopes that only widen."""
    layers = tiny.valid_layers(family)
    full = tiny.full_layers(family)
    count = draw(st.integers(1, 3))
    where = sorted(draw(st.lists(st.sampled_from(layers), min_size=count, max_size=count, unique=True)))
    widths = sorted(draw(st.integers(0, 3)) for _ in where)
    stages = []
    for number, (layer, width) in enumerate(zip(where, widths, strict=True)):
        site = "site=pre_llm" if layer == 0 else f"layer={layer}"
        names = ["random", "uniform"]
        names += ["fastv"] if any(below < layer for below in full) else []
        names += ["pool"] if number == 0 and SCOPES[width] != "sample" else []
        name = draw(st.sampled_from(names))
        words = [site]
        if name != "pool":
            words.append(draw(st.sampled_from(["keep=0.2", "keep=0.5", "keep=90%", "keep=1tok", "keep=7"])))
        if name == "fastv":
            words.append(draw(st.sampled_from(["query=last", "query=text", "query=all", "query=window:3", "rope=off"])))
        stages.append(f"{name}({', '.join([*words, f'scope={SCOPES[width]}'])})")
    return " | ".join(stages)


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


def stage_layers(plan: str) -> list[int]:
    return [stage.site.decoder_layer for stage in parse(plan).stages]


@pytest.mark.pairs
@every_family
@examples
@given(data=st.data())
def test_b_random_plans_equal_the_dense_reference(family, data):
    model = MODELS[family, "sdpa"]
    plan = data.draw(plans(family).filter(lambda text: "pool" not in text))
    _, inputs = data.draw(batches(family))
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        pruned = model(**inputs).logits
        alive = alive_columns(attachment.trace, inputs)
    with torch.no_grad(), dense_reference(model, dict(zip(stage_layers(plan), alive, strict=True))):
        reference = model(**inputs).logits
    everywhere = real(inputs)
    for columns in alive:
        everywhere = everywhere & columns
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS


@pytest.mark.pairs
@every_family
@examples
@given(data=st.data())
def test_c_and_d_random_batches_equal_their_rows_alone(family, data):
    model = MODELS[family, "sdpa"]
    plan = data.draw(plans(family))
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
        if "fastv" not in plan:  # which chooses anew at every step without a cache
            uncached = tiny.generate(model, inputs, tokens=3, use_cache=False)
            assert tiny.greatest_difference(uncached, together) < LOGITS


@pytest.mark.pairs
@every_family
@examples
@given(data=st.data())
def test_a_random_plans_that_keep_everything_are_bit_identical(family, data):
    model = MODELS[family, "sdpa"]
    plan = data.draw(plans(family).filter(lambda text: "pool" not in text))
    _, inputs = data.draw(batches(family))
    everything = plan
    for keep in ("keep=0.2", "keep=0.5", "keep=90%", "keep=1tok", "keep=7"):
        everything = everything.replace(keep, "keep=100%")
    plain = model(**inputs).logits.detach()
    with torch.no_grad(), Attachment(model, parse(everything), shortcut=data.draw(st.booleans())):
        logits = model(**inputs).logits
    assert torch.equal(logits[real(inputs)], plain[real(inputs)])
