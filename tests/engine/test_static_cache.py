"""Oracle E: a pruned static cache answers as a pruned dynamic one; compiled decode steps have no graph break."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from transformers import StaticCache
from transformers.generation import CompileConfig

import foveate
from foveate import families
from foveate.engine import static_gating
from foveate.engine.attachment import Attachment
from foveate.engine.compat import CACHE, cache_in
from foveate.engine.static_cache import StaticSlots
from foveate.errors import UnsupportedCombination
from foveate.spec import parse
from tests import fake_backends, tiny

LOGITS = 2e-4  # fp32 sums in another order, logits of size 10
# Those of which the plain model answers alike with a static cache and with a growing one.
ALIKE = tuple(family for family in tiny.ALL_FAMILIES if families.get(family).same_when_static)
every_family = pytest.mark.parametrize("family", ALIKE)


# To compile takes long: the anchors, and one family of each further kind of decoder.
COMPILED = tuple(
    family for family in tiny.ALL_FAMILIES if family in (*tiny.FAMILIES, "gemma4", "qwen3_vl", "qwen3_5", "molmo2")
)

# Which methods the plans below are made of.
PLANS = {"fastv": "fastv", "two": "random fastv", "pool": "pool"}


def plans(family: str) -> dict[str, str]:
    k = tiny.FIRST_LAYER[family]
    return {
        "fastv": f"fastv(layer={k}, keep=0.4)",
        "two": f"random(site=pre_llm, keep=0.6) | fastv(layer={k}, keep=0.5, query=text, rope=off)",
        "pool": "pool(site=pre_llm)",
    }


def prompts(family: str, batch: int) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch))


@pytest.mark.since((5, 24), "before, nobody looked")
@pytest.mark.parametrize("family", [family for family in tiny.ALL_FAMILIES if family not in ALIKE])
def test_the_plain_model_of_other_families_answers_otherwise_with_a_static_cache(model_of, family):
    model, inputs = model_of(family), prompts(family, 1)
    static, dynamic = (tiny.generate(model, inputs, **options) for options in ({"cache_implementation": "static"}, {}))
    assert tiny.greatest_difference(static, dynamic) > 100 * LOGITS  # when this fails, the family's note is out of date


@pytest.mark.matrix(caches=("static",))
@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", ["fastv", "two", "pool"])
def test_static_equals_dynamic(model_of, family, backend, batch, plan):
    model, inputs = model_of(family, backend), prompts(family, batch)
    with foveate.attach(model, plans(family)[plan]) as attachment:
        dynamic = tiny.generate(model, inputs, tokens=8)
        kept = [entry.kept_index.tolist() for entry in attachment.trace]
        static = tiny.generate(model, inputs, tokens=8, cache_implementation="static")
        assert [entry.kept_index.tolist() for entry in attachment.trace] == kept
    assert torch.equal(static.sequences, dynamic.sequences)
    assert tiny.greatest_difference(static, dynamic) < LOGITS
    assert any(isinstance(layer, StaticSlots) for layer in cache_in(static).layers)


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_keeping_everything_is_bit_identical_in_a_static_cache(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    plain = tiny.generate(model, inputs, cache_implementation="static")
    everything = parse("random(site=pre_llm, keep=100%)")
    for shortcut in (True, False):
        with Attachment(model, everything, shortcut=shortcut):
            kept = tiny.generate(model, inputs, cache_implementation="static")
        assert torch.equal(kept.sequences, plain.sequences)
        assert tiny.greatest_difference(kept, plain) == 0


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
@pytest.mark.pairs
@every_family
def test_a_text_turn_and_beams_on_a_pruned_static_cache_equal_the_dynamic_one(model_of, family):
    model, inputs = model_of(family), prompts(family, 1)
    maker = tiny.Maker(family, seed=5)
    more = maker.text(6)[None]
    with foveate.attach(model, plans(family)["fastv"]):
        answers = {}
        for kind in ("dynamic", "static"):
            options = {}
            if kind == "static":
                cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=160)
                options[CACHE] = cache
            first = tiny.generate(model, inputs, **options)
            ids = torch.cat([first.sequences, more], 1)
            again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: cache_in(first)}
            again |= maker.side_inputs(ids)
            answers[kind] = tiny.generate(model, again)
        assert tiny.greatest_difference(answers["static"], answers["dynamic"]) < LOGITS
        if family in tiny.NO_BEAMS:
            return
        beams = [tiny.generate(model, inputs, num_beams=2, **options) for options in ({}, {"cache_implementation": "static"})]
    assert torch.equal(beams[0].sequences, beams[1].sequences)


def test_a_new_image_behind_a_text_turn_in_a_static_cache(model_of):
    """The first turn leaves plain static layers, which the second turn's plan takes over."""
    model, maker = model_of("llava"), tiny.Maker("llava")
    text = maker.inputs([tiny.Row([maker.text(6)])])
    picture, words = maker.picture(), maker.text(5)
    logits = {}
    for query in ("last", "text"):
        for kind in ("dynamic", "static"):
            cache = StaticCache(config=model.config.get_text_config(), max_cache_len=90) if kind == "static" else None
            plan = f"fastv(layer=2, keep=0.4, query={query})"
            with torch.no_grad(), foveate.attach(model, plan) as attachment, attachment.conversation():
                out = model(**text, **{CACHE: cache}, use_cache=True)
                then = maker.inputs([tiny.Row([words[:2], picture, words[2:]])], mask=False)
                logits[kind] = model(**then, **{CACHE: cache_in(out)}).logits
        assert float((logits["static"] - logits["dynamic"]).abs().max()) < LOGITS


def test_a_cleared_static_cache_serves_the_next_prompt(model_of):
    model, inputs = model_of("gemma3"), prompts("gemma3", 1)
    other = tiny.Maker("gemma3", seed=7)
    longer = other.inputs([tiny.Row([other.text(20), other.picture(), other.text(9)])])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=90)
    with foveate.attach(model, plans("gemma3")["two"]):
        expected = [tiny.generate(model, batch) for batch in (inputs, longer)]
        for batch, answer in zip((inputs, longer), expected, strict=True):
            got = tiny.generate(model, batch, **{CACHE: cache})
            assert tiny.greatest_difference(got, answer) < LOGITS
            cache.reset()


@pytest.mark.since((5, 17), "before, generate() takes no max_cache_len")
def test_a_pruned_static_layer_reserves_less(monkeypatch):
    monkeypatch.setattr(static_gating, "RESERVED_IN_STEPS", 8)
    # A model of its own: transformers remembers the longest static cache of each.
    model, inputs = tiny.tiny_model("llava"), prompts("llava", 1)
    columns = inputs["input_ids"].shape[1]
    with foveate.attach(model, "fastv(layer=2, keep=0.25)"):
        plain = tiny.generate(model, inputs, tokens=6)
        answer = tiny.generate(model, inputs, tokens=6, cache_implementation="static", max_cache_len=100)
    assert tiny.greatest_difference(answer, plain) < LOGITS
    sizes = [layer.keys.shape[2] for layer in cache_in(answer).layers]
    removed = 27
    assert columns == 48 and sizes == [100, 100] + [80] * 3
    assert sizes[2] >= 100 - removed, "as many columns as before still fit"
    assert [layer.get_max_length() for layer in cache_in(answer).layers] == [100] * 5


def test_a_pruned_static_cache_does_not_say_that_it_can_forget_its_last_columns(model_of):
    model, inputs = model_of("llava"), prompts("llava", 1)
    with foveate.attach(model, plans("llava")["fastv"]):
        cache = cache_in(tiny.generate(model, inputs, cache_implementation="static"))
    assert not cache.layers[-1].is_croppable
    with pytest.raises(UnsupportedCombination, match="cannot forget its last columns: use a dynamic cache"):
        cache.layers[-1].crop(-2)


def test_static_caches_are_refused_where_they_cannot_be_right(model_of):
    inputs = prompts("llava", 1)
    model = model_of("llava")
    chooses_anew = pytest.raises(UnsupportedCombination, match="chooses anew at every step")
    with foveate.attach(model, "fastv(layer=2, keep=0.5, effect=mask)"), chooses_anew:
        tiny.generate(model, inputs, cache_implementation="static")
    fake_backends.register()
    flash = tiny.tiny_model("llava")
    fake_backends.use(flash, fake_backends.FLASH)
    cache = StaticCache(config=flash.config.get_text_config(), max_cache_len=90)
    refused = pytest.raises(UnsupportedCombination, match="use sdpa, or a dynamic cache")
    with foveate.attach(flash, "random(site=pre_llm, keep=0.5)"), refused, torch.no_grad():
        flash(**inputs, **{CACHE: cache})
    assert int(cache.get_seq_length()) == 0, "refused before anything is written"


@pytest.mark.full
@pytest.mark.matrix(caches=("compiled",), plan="random fastv")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "batch"), [("llava", 3), *product(COMPILED, [1])])
def test_compiled_decode_steps_have_no_graph_break(family, batch):
    model, inputs = tiny.tiny_model(family), prompts(family, batch)
    options = {"cache_implementation": "static", "tokens": 8}
    plain_graphs, plain = compiled_graphs(model, inputs, **options)
    with foveate.attach(model, plans(family)["two"]):
        expected = tiny.generate(model, inputs, **options)
        graphs, answer = compiled_graphs(model, inputs, **options)
    # Some models transformers does not compile. A sliding window fills later when tokens were dropped, and then compiles once
    # more; otherwise there are no more graphs than without a plan.
    windows = len({window for window in families.get(family).decoder_windows(model.config) if window is not None})
    assert min(1, plain_graphs) <= graphs <= plain_graphs * (1 + 2 * windows)
    assert tiny.greatest_difference(answer, expected) < LOGITS
    assert tiny.greatest_difference(answer, plain) > 100 * LOGITS


def every_device() -> CompileConfig:
    """What generate() does by itself on accelerators, on the CPU."""
    compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiled._compile_all_devices = True
    return compiled


def compiled_graphs(model, inputs, **options):
    """How many graphs a generate call compiles, and its answer; a graph break is an error."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.__dict__.pop("_compiled_call", None)  # where transformers keeps the compiled model
    answer = tiny.generate(model, inputs, compile_config=every_device(), **options)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], dict(counters["graph_break"])
    graphs = counters["stats"]["unique_graphs"]
    model.__dict__.pop("_compiled_call", None)
    torch._dynamo.reset()
    return graphs, answer


# Gemma 3's layers compile for minutes.
@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", ["llava", pytest.param("gemma3", marks=pytest.mark.nightly)])
def test_compiled_steps_notice_attaching_and_detaching(family):
    """torch.compile does not watch a module's hooks, so a step compiled before would run without them, or with them after."""
    model, inputs = tiny.tiny_model(family), prompts(family, 3)
    static, compiled = {"cache_implementation": "static"}, {"compile_config": every_device()}
    plain = tiny.generate(model, inputs, **static)

    def far(expected: object) -> float:
        return tiny.greatest_difference(tiny.generate(model, inputs, **static, **compiled), expected)

    assert far(plain) < LOGITS
    for plan in plans(family).values():
        with foveate.attach(model, plan) as attachment:
            pruned = tiny.generate(model, inputs, **static)
            assert far(pruned) < LOGITS < far(plain)
            with attachment.disabled():
                assert far(plain) < LOGITS
            assert far(pruned) < LOGITS
        assert far(plain) < LOGITS
    torch._dynamo.reset()


# Gemma 3's prompt cannot be compiled in transformers either: dynamo fails in its image-block mask.
@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_compiled_behind_the_plan_answers_as_before(family):
    """Nothing but static decode steps can be traced with the hooks in them: the hooks leave the graph."""
    torch._dynamo.reset()
    model, inputs = tiny.tiny_model(family), prompts(family, 3)
    with foveate.attach(model, plans(family)["fastv"]):
        expected = tiny.generate(model, inputs, tokens=4)
        model.compile(backend="eager")
        answer = tiny.generate(model, inputs, tokens=4)
        model._compiled_call_impl = None
    torch._dynamo.reset()
    assert tiny.greatest_difference(answer, expected) < LOGITS
