"""Gated decoding in every kind of cache: the answers of the dynamic one, which the dense reference holds, in fewer slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import QuantizedCache, StaticCache
from transformers.generation import CompileConfig

import foveate
from foveate.engine import compat, static_gating
from foveate.engine import gate as gate_module
from foveate.engine.cache_kinds import lasting_bytes, stored_bytes, ungated_bytes
from foveate.engine.compat import CACHE, cache_in
from foveate.engine.static_cache import StaticSlots
from foveate.errors import FoveateWarning, UnsupportedCombination
from tests import fake_backends, tiny
from tests.engine.test_gate import LOGITS, PLANS, extended, plan_for, prompt, rejected_columns
from tests.engine.test_quantized_cache import (  # noqa: F401  # fixtures
    BACKENDS,
    _nothing_is_compiled,
    cache_of,
    lossless,
)
from tests.marks import one_and_more
from tests.oracles.gated_reference import gated_reference
from tests.trained import random_predictors

TOKENS = 22  # the residual of the quantized caches here is full several times


@pytest.fixture
def small_steps(monkeypatch) -> None:
    """Slots are reserved one by one, so that tiny models show what is saved and run out of slots."""
    monkeypatch.setattr(static_gating, "RESERVED_IN_STEPS", 1)


def answers(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    return tiny.generate(model, inputs, TOKENS, **options)


def both(model: Any, inputs: dict[str, torch.Tensor], plan: str, **options: Any) -> tuple[Any, Any]:
    """Answers with a dynamic cache and with another one, under a plan; what the gate decided is the same."""
    with foveate.attach(model, plan) as attachment:
        dynamic = answers(model, inputs)
        decided = attachment.trace.answer_kept
        assert any(not kept.all() for kept in decided) and any(kept.any() for kept in decided)
        answer = answers(model, inputs, **options)
        assert all(torch.equal(a, b) for a, b in zip(decided, attachment.trace.answer_kept, strict=True))
    return dynamic, answer


@pytest.mark.matrix(caches=("static",))
@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("text", PLANS)
def test_a_gate_on_a_static_cache_answers_as_on_a_dynamic_one(model_of, small_steps, family, backend, batch, text):
    model, inputs = model_of(family, backend), prompt(family, batch)
    dynamic, static = both(model, inputs, plan_for(family, text), cache_implementation="static")
    assert tiny.greatest_difference(static, dynamic) < LOGITS
    assert any(isinstance(layer, StaticSlots) and layer.gated for layer in cache_in(static).layers)


@pytest.mark.parametrize("recent", one_and_more([4, 1]))
def test_fewer_slots_are_reserved_and_a_rejected_token_s_slot_is_used_again(model_of, small_steps, recent):
    model, inputs = tiny.tiny_model("llava"), prompt("llava", batch=2)
    columns = inputs["input_ids"].shape[1]
    text = f"stride_gate(layer=2, keep=0.25, recent={recent})"
    with foveate.attach(model, text) as attachment:
        answer = answers(model, inputs, cache_implementation="static", max_cache_len=columns + 40)
        rejected = int((~attachment.trace.answer_kept[0]).sum())
    cache = cache_in(answer)
    # Of 40 tokens that may come a quarter is stored, and as many as are still seen.
    reserved = columns + 40 - (30 - recent)
    assert [layer.keys.shape[2] for layer in cache.layers] == [columns + 40] * 2 + [reserved] * 3
    assert [layer.get_max_length() for layer in cache.layers] == [columns + 40] * 5
    used = (cache.layers[2].positions(2, torch.device("cpu")) != -1).sum(1)
    assert int(used.max()) <= columns + (TOKENS - 1 - rejected) + recent
    assert lasting_bytes(cache) == stored_bytes(cache)
    slot = 2 * 4 * 2 * cache.layers[2].keys.shape[1] * cache.layers[2].keys.shape[3]
    assert ungated_bytes(cache, 2, rejected) == stored_bytes(cache) + 3 * (30 - recent) * slot


def test_slots_are_added_where_a_gate_stores_more_than_it_said(model_of, small_steps):
    """Protected tokens are no part of a gate's share: here all are."""
    model, inputs = model_of("llava"), prompt("llava")
    everything = ", ".join(str(token) for token in range(99))
    with foveate.attach(model, f"stride_gate(layer=2, keep=0.25, recent=0, protect=[{everything}])") as attachment:
        dynamic = answers(model, inputs)
        static = answers(model, inputs, cache_implementation="static")
        assert torch.stack(attachment.trace.answer_kept).all()
    assert tiny.greatest_difference(static, dynamic) < LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize("family", one_and_more(tiny.FAMILIES))
@pytest.mark.parametrize("options", one_and_more([", recent=3", ", recent=0"]))
def test_a_second_turn_and_chunks_on_a_gated_static_cache(model_of, small_steps, family, options):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    question = maker.text(6)[None]
    length = inputs["input_ids"].shape[1] + 2 * TOKENS + 6
    found = {}
    with foveate.attach(model, plan_for(family, f"random_gate(layer={{l}}, keep=0.5{options})")):
        for kind in ("dynamic", "static"):
            cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)
            first = answers(model, inputs, **({CACHE: cache} if kind == "static" else {}))
            ids = torch.cat([first.sequences, question], dim=1)
            again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: cache_in(first)} | maker.side_inputs(ids)
            found[kind] = answers(model, again)
            if kind == "static":  # emptied, it serves the next prompt
                cache.reset()
                assert tiny.greatest_difference(answers(model, inputs, **{CACHE: cache}), first) < LOGITS
    assert tiny.greatest_difference(found["static"], found["dynamic"]) < LOGITS


def test_a_long_text_in_chunks_fits_into_what_was_reserved(model_of, small_steps):
    """What a gate will spare is counted from the prompt's end on, not from its first chunk's."""
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(60)])])
    with foveate.attach(model, "stride_gate(layer=2, keep=0.25, recent=0)"):
        expected = answers(model, inputs)
        found = answers(model, inputs, cache_implementation="static", prefill_chunk_size=16)
    assert tiny.greatest_difference(found, expected) < LOGITS


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
def test_beams_on_a_gated_static_cache(model_of, small_steps):
    model, inputs = model_of("llava"), prompt("llava")
    with foveate.attach(model, PLANS[0].format(l=2)):
        first, second = (
            model.generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False, **options)
            for options in ({}, {"cache_implementation": "static"})
        )
    assert torch.equal(first, second)


@pytest.mark.parametrize("recent", one_and_more([6, 1]))
def test_a_trained_gate_with_and_without_a_window_is_that_of_the_dense_reference(model_of, small_steps, tmp_path, recent):
    model, inputs = model_of("llava"), prompt("llava")
    length = inputs["input_ids"].shape[1]
    path, _ = random_predictors(tmp_path, model, inputs=inputs, layer=2)
    with foveate.attach(model, f"dynamic_text(layer=2, path='{path}', recent={recent})") as attachment:
        static = answers(model, inputs, cache_implementation="static")
        rejected = rejected_columns(attachment.trace, length)
        dynamic = answers(model, inputs)
    assert rejected.any() and tiny.greatest_difference(static, dynamic) < LOGITS
    with torch.no_grad(), gated_reference(model, 2, rejected, recent):
        logits = model(**extended(inputs, static.sequences, "llava"), use_cache=False).logits
    for step, found in enumerate(static.logits):
        torch.testing.assert_close(found, logits[:, length - 1 + step], atol=LOGITS, rtol=0)


def test_a_gate_leaves_decode_steps_uncompiled_and_says_so(model_of):
    """generate() compiles steps on static caches by itself on accelerators; a gate decides outside of any graph."""
    model, inputs = tiny.tiny_model("llava"), prompt("llava")
    wanted = CompileConfig(fullgraph=True, backend="eager", mode=None)
    wanted._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    with foveate.attach(model, PLANS[0].format(l=2)):
        expected = answers(model, inputs)
        with pytest.warns(FoveateWarning, match="compile_config has no effect under a gate"):
            found = answers(model, inputs, cache_implementation="static", compile_config=wanted)
    assert tiny.greatest_difference(found, expected) < LOGITS
    assert not torch._dynamo.utils.counters["stats"].get("unique_graphs")


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_model_that_was_compiled_by_hand_is_gated_outside_of_its_graphs(model_of):
    torch._dynamo.reset()
    model, inputs = tiny.tiny_model("llava"), prompt("llava")
    with foveate.attach(model, PLANS[0].format(l=2)):
        expected = tiny.generate(model, inputs, tokens=5)
        model.compile(backend="eager")
        found = tiny.generate(model, inputs, tokens=5, cache_implementation="static")
        model._compiled_call_impl = None
    torch._dynamo.reset()
    assert tiny.greatest_difference(found, expected) < LOGITS


def test_a_gated_static_cache_under_flash_attention_is_refused(model_of):
    fake_backends.register()
    model = tiny.tiny_model("llava")
    fake_backends.use(model, fake_backends.FLASH)
    maker = tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(9)])])
    with foveate.attach(model, PLANS[0].format(l=2)), pytest.raises(UnsupportedCombination, match="use sdpa, or a dynamic"):
        answers(model, inputs, cache_implementation="static")


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("clean_every", [3, 64])
def test_a_gate_on_a_lossless_quantized_cache_answers_as_on_a_dynamic_one(
    model_of,
    lossless,  # noqa: F811
    monkeypatch,
    family,
    backend,
    batch,
    text,
    clean_every,
):
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", clean_every)
    model, inputs = model_of(family), prompt(family, batch)
    dynamic, answer = both(model, inputs, plan_for(family, text), **{CACHE: cache_of(model, backend)})
    assert tiny.greatest_difference(answer, dynamic) < LOGITS


@pytest.mark.parametrize("recent", one_and_more([3, 1]))
def test_what_a_gate_rejects_is_never_quantized(model_of, recent):
    model, inputs = model_of("llava"), prompt("llava", batch=1)
    with foveate.attach(model, f"stride_gate(layer=2, keep=0.25, recent={recent})") as attachment:
        answer = answers(model, inputs, **{CACHE: cache_of(model, "quanto")})
        kept = attachment.trace.answer_kept[0]
    length = inputs["input_ids"].shape[1]
    for layer in cache_in(answer).layers[2:]:
        columns = layer.positions(1, torch.device("cpu"))[0]
        quantized = layer._dequantize(layer._quantized_keys).shape[2]
        assert quantized == layer.fixed_slots and quantized > length, "some of the answer is quantized by now"
        assert (columns[:quantized] >= 0).all()
        assert (
            columns[length:quantized].tolist()
            == [length + number for number, stays in enumerate(kept.tolist()) if stays][: quantized - length]
        )
        assert layer._waiting <= max(layer.residual_length, recent + 1)


@pytest.mark.skipif(compat.FP8_LAYER is None, reason="before transformers 5.21 there is no fp8 cache")
def test_an_fp8_cache_lets_rejected_slots_go(model_of, monkeypatch):
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", 4)
    model, inputs = model_of("llava"), prompt("llava", batch=1)
    with foveate.attach(model, "stride_gate(layer=2, keep=0.25, recent=0)") as attachment:
        answer = answers(model, inputs, **{CACHE: QuantizedCache(backend="fp8", config=model.config)})
        kept = int(attachment.trace.answer_kept[0].sum())
    length = inputs["input_ids"].shape[1]
    for layer in cache_in(answer).layers[2:]:
        stored, _ = layer._quantized_keys
        assert stored.shape[2] == layer.slots <= length + kept + 4
        assert stored.dtype == torch.float8_e4m3fn
