"""What a kind of cache says it can do, it can; what it says it cannot, is refused. Every kind of the registry is tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.engine import cache_kinds
from foveate.engine.compat import cache_in
from foveate.engine.slots import SlotLayer
from foveate.errors import UnsupportedCombination
from tests import tiny
from tests.engine.test_quantized_cache import _nothing_is_compiled  # noqa: F401  # a fixture for the whole module

# What `generate` must be told besides the name.
OPTIONS = {"quantized": {"cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 4}}}
PRUNED = "random(site=pre_llm, keep=0.6) | fastv(layer=2, keep=0.4)"
every_kind = pytest.mark.parametrize("name", cache_kinds.NAMES)


def kind_named(name: str) -> type[SlotLayer]:
    return next(kind for kind in cache_kinds.SLOT_CLASSES.values() if kind.cache == name)


def run(model: Any, plan: str, name: str) -> tuple[Any, foveate.Attachment]:
    maker = tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 2))
    with foveate.attach(model, plan) as attachment:
        out = tiny.generate(model, inputs, tokens=3, cache_implementation=name, **OPTIONS.get(name, {}))
    return out, attachment


@every_kind
def test_a_pruned_prompt_is_stored_without_what_was_removed(model_of, name):
    kind = kind_named(name)
    answer, attachment = run(model_of("llava"), PRUNED, name)
    dynamic, _ = run(model_of("llava"), PRUNED, "dynamic")
    layers = cache_in(answer).layers
    assert all(isinstance(layer, SlotLayer) and layer.cache == name for layer in layers)
    assert torch.equal(answer.logits[0], dynamic.logits[0]) or name == "static"  # whose empty slots change the order of sums
    assert float((answer.logits[0] - dynamic.logits[0]).abs().max()) < 2e-4
    assert (attachment.report().prefill_kv_bytes is not None) == kind.measurable
    assert cache_in(answer).is_compileable == kind.compiles


@every_kind
@pytest.mark.parametrize(
    ("plan", "capability"),
    [("random_gate(layer=2, keep=0.5, recent=0)", "forgets"), ("fastv(layer=2, keep=0.5, effect=mask)", "masks")],
)
def test_what_a_kind_cannot_do_is_refused_and_the_rest_works(model_of, name, plan, capability):
    if getattr(kind_named(name), capability):
        run(model_of("llava"), plan, name)
    else:
        with pytest.raises(UnsupportedCombination, match="use a dynamic cache"):
            run(model_of("llava"), plan, name)


def test_every_class_of_a_kind_can_do_the_same():
    told = ("forgets", "compiles", "masks", "measurable")
    for kind in cache_kinds.SLOT_CLASSES.values():
        assert kind.cache in cache_kinds.NAMES
        assert [getattr(kind, name) for name in told] == [getattr(kind_named(kind.cache), name) for name in told]
