"""Known traps of hooking into transformers, one test each.

Not here: P8 (chunked prefill) is in test_generation.py. P12's tensor parallelism needs several devices, its device maps are in
test_lifecycle.py. P17's rope tensors (Llama 4) and positional rope (Gemma 3n) belong to families without a file yet; the
shapes are tested below. P14 (NaN sentinels) belongs to encoder stages, which this version does not serve.
"""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from transformers import DynamicCache

import foveate
from foveate.core.layout import Layout
from foveate.core.shape import MediumShape
from foveate.engine import observe, refusals
from foveate.engine.compat import CACHE, cache_in
from foveate.engine.projection import Alive, project_positions
from foveate.engine.raters import rater_columns
from foveate.engine.slots import SlotLayer
from foveate.errors import PlanError, UnsupportedCombination
from tests import fake_backends, tiny
from tests.oracles.dense_reference import decoder_layers, dense_reference
from tests.spies import alive_columns, layer_calls, real

# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
FASTV = "fastv(layer=2, keep=0.4)"


def prompts(family: str, batch: int = 3, side: str = "left") -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch), side=side)


@every_family
def test_p1_gaps_in_the_positions_are_not_taken_for_packed_sequences(family):
    fake_backends.register()
    model, inputs = tiny.tiny_model(family), prompts(family, 1)
    del inputs["attention_mask"]  # packing is only looked for without a mask
    with layer_calls(model, 3) as plain:
        model(**inputs)
    if not tiny.axes_differ(family):  # whose layers get position ids from generate() only
        assert plain[0]["position_ids"] is not None
    with foveate.attach(model, FASTV), layer_calls(model, 3) as calls, layer_calls(model, 1) as below:
        model(**inputs)
    assert calls[0]["position_ids"] is None
    if not tiny.axes_differ(family):
        assert below[0]["position_ids"] is not None, "layers below the cut see what they always see"
    if not tiny.slides(family):
        fake_backends.use(model, fake_backends.FLASH)
        fake_backends.packed.clear()
        with foveate.attach(model, FASTV):
            model(**inputs)
        assert not fake_backends.packed


@every_family
@pytest.mark.parametrize("plan", [FASTV, "random(site=pre_llm, keep=0.4)"])
def test_p2_the_cache_reports_columns_wherever_transformers_asks(model_of, family, plan):
    model, inputs = model_of(family), prompts(family)
    plain = cache_in(tiny.generate(model, inputs, tokens=3))
    with foveate.attach(model, plan):
        cache = cache_in(tiny.generate(model, inputs, tokens=3))
    assert cache.get_seq_length() == plain.get_seq_length()
    for index, (layer, other) in enumerate(zip(cache.layers, plain.layers, strict=True)):
        assert cache.get_seq_length(index) == plain.get_seq_length(index)
        for queries in (1, 5):
            assert layer.get_mask_sizes(queries) == other.get_mask_sizes(queries)
    assert cache.layers[4].slots < plain.layers[4].keys.shape[2]


@pytest.mark.since((5, 17), "before, generate() takes no max_cache_len")
@every_family
def test_p3_scores_ignore_the_empty_slots_of_a_static_cache(model_of, family):
    """An update returns the whole reservation, and writes where its own count says."""
    model, inputs = model_of(family), prompts(family)
    kept = {}
    for kind in ("dynamic", "static"):
        for plan in (FASTV, f"{FASTV[:-1]}, query=all)", f"random(site=pre_llm, keep=0.5) | {FASTV[:-1]}, rope=off)"):
            with foveate.attach(model, plan) as attachment:
                tiny.generate(model, inputs, tokens=2, cache_implementation=kind, max_cache_len=200)
                kept[kind, plan] = [entry.kept_index.tolist() for entry in attachment.trace]
    for (kind, plan), choice in kept.items():
        assert choice == kept["dynamic", plan], (kind, plan)


def test_p4_sliding_layers_hold_their_last_slots_and_scores_come_from_full_attention(model_of):
    model, inputs = model_of("gemma3"), prompts("gemma3", 1)
    with foveate.attach(model, "fastv(layer=3, keep=0.5)") as attachment:
        watched = list(attachment._hooks.parts.probes)
        answer = tiny.generate(model, inputs, tokens=4)
        alive = alive_columns(attachment.trace, inputs)[0][0]
    assert watched == [1], "layer 2 slides; the nearest full layer below the cut is 1"
    survivors = [*torch.nonzero(alive).flatten().tolist(), 48, 49, 50]
    for layer in cache_in(answer).layers[3:]:
        positions = layer.positions(1, torch.device("cpu"))[0].tolist()
        window = layer.sliding_window - 1 if layer.is_sliding else 500
        assert positions == survivors[-window:]
    with pytest.raises(PlanError, match="smallest valid layer is 2"):
        foveate.attach(model, "fastv(layer=1, keep=0.5)")


@pytest.mark.since((5, 18), "before, a full window cannot be cropped, or returns more than its mask covers")
@pytest.mark.parametrize("recording", [False, True])
def test_p4_a_sliding_layer_that_records_its_past_can_be_cropped(model_of, recording):
    model, maker = model_of("gemma3"), tiny.Maker("gemma3")
    inputs = maker.inputs([tiny.Row([maker.text(2), maker.picture(), maker.text(4)])])
    more = maker.text(9)[None]
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.25)"):
        cache = DynamicCache(config=model.config.get_text_config())
        model(**inputs, **{CACHE: cache})
        whole = copy.deepcopy(cache)
        expected = model(input_ids=more[:, :3], **{CACHE: whole}).logits
        if recording:
            cache.activate_past_recording()
        model(input_ids=more[:, :2], **{CACHE: cache})
        if not recording:
            with pytest.raises(RuntimeError, match="activate_past_recording"):
                cache.crop(-2)
            return
        model(input_ids=more[:, 5:9], **{CACHE: cache})
        cache.crop(-4)
        got = model(input_ids=more[:, 2:3], **{CACHE: cache}).logits
    assert float((got[:, -1] - expected[:, -1]).abs().max()) < LOGITS


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_p5_the_last_query_is_the_rows_last_real_token(model_of, family, side):
    model, inputs = model_of(family), prompts(family, side=side)
    single = [tiny.Maker(family).inputs([row]) for row in tiny.ragged_rows(tiny.Maker(family), 3)]
    with torch.no_grad(), foveate.attach(model, FASTV) as attachment:
        model(**inputs)
        together = [[entry.kept_index.tolist() for entry in attachment.trace.sample(row)] for row in range(2)]
        for row in range(2):
            model(**single[row])
            assert [entry.kept_index.tolist() for entry in attachment.trace] == together[row]


@every_family
def test_p6_a_label_behind_a_pruned_position_leaves_the_loss(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(4), maker.picture(), maker.text(7)])])
    labels = torch.full_like(inputs["input_ids"], -100)
    ids = inputs["input_ids"][0]
    first = int(torch.nonzero(ids == tiny.IMAGE)[-1]) + 1  # text right behind the second image, in the second answer
    labels[0, first : first + 2] = 7
    labels[0, 2] = 8  # the first answer begins in front of both
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.25)") as attachment:
        out = model(**inputs, labels=labels)
        assert attachment.last.ignored_labels == 1
    wanted = -(out.logits[0, first].log_softmax(-1)[7] + out.logits[0, 1].log_softmax(-1)[8]) / 2
    assert float(out.loss) == pytest.approx(float(wanted), rel=1e-5)


@every_family
def test_the_first_label_of_a_prompt_that_ends_with_a_picture_counts(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    labels = torch.full_like(inputs["input_ids"], -100)
    first = int(torch.nonzero(inputs["input_ids"][0] == tiny.IMAGE)[-1]) + 1
    labels[0, first : first + 2] = 7
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.25)") as attachment:
        out = model(**inputs, labels=labels)
        assert attachment.last.ignored_labels == 0
    wanted = -out.logits[0, first - 1 : first + 1].log_softmax(-1)[:, 7].mean()
    assert float(out.loss) == pytest.approx(float(wanted), rel=1e-5)


@every_family
def test_p7_without_a_cache_fastv_is_another_algorithm(model_of, family):
    # Each step ranks with its own last token. Frozen to the prefill's choice, cached and uncached agree.
    model, inputs = model_of(family), prompts(family)
    with foveate.attach(model, "fastv(layer=2, keep=0.2)") as attachment:
        cached = tiny.generate(model, inputs, tokens=8)
        alive = {2: alive_columns(attachment.trace, inputs)[0]}
        uncached = tiny.generate(model, inputs, tokens=8, use_cache=False)
    with dense_reference(model, alive):
        frozen = tiny.generate(model, inputs, tokens=8, use_cache=False)
    assert tiny.greatest_difference(cached, frozen) < LOGITS
    assert tiny.greatest_difference(cached, uncached) > 100 * LOGITS


def test_p9_a_qwen_answer_does_not_depend_on_the_call_before_it(model_of):
    # rope_deltas live on the model between calls.
    model = model_of("qwen2_5_vl")
    first, other = prompts("qwen2_5_vl", 1), prompts("qwen2_5_vl", 3)
    with foveate.attach(model, FASTV):
        expected = tiny.generate(model, first)
        tiny.generate(model, other)
        again = tiny.generate(model, first)
    assert tiny.greatest_difference(again, expected) == 0


@every_family
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_p10_the_models_own_implementation_name_never_changes(model_of, family, backend):
    model, inputs = model_of(family, backend), prompts(family)
    seen, attention = [], [layer.self_attn for layer in decoder_layers(model)]

    def look(module, *_):
        seen.append({module.config._attn_implementation for module in (model, model.model.language_model)})

    handles = [module.q_proj.register_forward_hook(look) for module in attention]
    with torch.no_grad(), foveate.attach(model, FASTV):
        model(**inputs)
        assert observe.PROBE.isidentifier() and "flash" not in observe.PROBE and "flex" not in observe.PROBE
    for handle in handles:
        handle.remove()
    assert seen and all(names == {backend} for names in seen)
    assert all(module.config is model.model.language_model.config for module in attention)


@pytest.mark.since((5, 23), "before, it is refused without being told that it should be")
def test_p11_gradient_checkpointing_is_refused_where_hooks_are_replayed(monkeypatch):
    model, inputs = tiny.tiny_model("llava").train(), prompts("llava", 1)
    model.activation_checkpointing_enable()
    with foveate.attach(model, FASTV):
        model(**inputs, use_cache=False)
        monkeypatch.setattr(refusals.compat, "HOOKS_SURVIVE_CHECKPOINTING", False)
        with pytest.raises(UnsupportedCombination, match=r"transformers >= 5\.23"):
            model(**inputs, use_cache=False)


@every_family
def test_p12_no_module_is_replaced(model_of, family):
    model = model_of(family)
    before = {name: (id(module), module.forward.__func__) for name, module in model.named_modules()}
    with foveate.attach(model, FASTV):
        assert {name: (id(module), module.forward.__func__) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)  # sliding layers get a mask at every step
def test_p13_decode_steps_of_an_even_batch_touch_no_tensor(model_of, family):
    # The fast path only counts: what a decode step adds to the plain model's operations is nothing.
    model, inputs = model_of(family), prompts(family, 1)
    with torch.no_grad():
        counts = []
        for plan in ("none", FASTV):
            with foveate.attach(model, plan):
                cache = cache_in(model(**inputs, use_cache=True))
                model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
                with Operations() as operations:
                    model(input_ids=torch.tensor([[6]]), **{CACHE: cache})
                counts.append(operations.count)
    assert counts[0] == counts[1]


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_p15_signatures_are_read_once_and_slot_layers_are_ordinary_classes(model_of, monkeypatch):
    model, inputs = model_of("llava"), prompts("llava", 1)
    with torch.no_grad(), foveate.attach(model, FASTV):
        calls = []
        signature = inspect.signature

        def count(*args, **kwargs):
            calls.append(inspect.stack()[1].filename)
            return signature(*args, **kwargs)

        monkeypatch.setattr(inspect, "signature", count)
        cache = cache_in(model(**inputs, use_cache=True))
        monkeypatch.undo()
    assert not [file for file in calls if "foveate" in file.rpartition("tests")[0].rpartition("/foveate/")[1]]
    for layer in cache.layers:
        kind = type(layer)
        assert getattr(__import__(kind.__module__, fromlist=[kind.__name__]), kind.__name__) is kind, "it could not be pickled"


@pytest.mark.pairs
@pytest.mark.since((5, 17), "before, crop takes the length that stays")
@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("said", [0, 3])
def test_p16_cropping_counts_columns_back_from_the_end(model_of, family, batch, said):
    model, inputs = model_of(family), prompts(family, batch)
    step = torch.arange(5, 5 + batch)[:, None]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, said + 1), value=1)
    # Qwen asks for the position of a decode step; any will do, as long as both caches get the same.
    more = {"position_ids": torch.full((3, batch, 1), 70)} if tiny.axes_differ(family) else {}
    with torch.no_grad(), foveate.attach(model, FASTV):
        cache = cache_in(model(**inputs, use_cache=True))
        for number in range(said):
            seen = mask[:, : mask.shape[1] - said + number]
            model(input_ids=step + number, attention_mask=seen, **{CACHE: cache}, **more)
        expected_cache = copy.deepcopy(cache)
        for number in range(2):
            seen = torch.nn.functional.pad(mask, (0, number), value=1)
            model(input_ids=step + 9, attention_mask=seen, **{CACHE: cache}, **more)
        cache.crop(-2)
        cache.crop(0)
        assert [layer.get_seq_length() for layer in cache.layers] == [layer.get_seq_length() for layer in expected_cache.layers]
        one = model(input_ids=step, attention_mask=mask, **{CACHE: cache}, **more).logits
        two = model(input_ids=step, attention_mask=mask, **{CACHE: expected_cache}, **more).logits
    assert float((one - two).abs().max()) < LOGITS


@pytest.mark.since((5, 17), "before, crop takes the length that stays")
def test_p16_cropping_into_the_prompt_keeps_the_slots_before_it(model_of):
    model, inputs = model_of("llava"), prompts("llava", 1)
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.25)"):
        cache = cache_in(model(**inputs, use_cache=True))
        cache.crop(-10)  # 7 columns of text and the last 3 of the picture
        layer = cache.layers[3]
        assert isinstance(layer, SlotLayer)
        assert layer.get_seq_length() == cache.layers[0].get_seq_length() == 38
        assert int(layer.positions(1, torch.device("cpu")).max()) < 38
        with pytest.raises(ValueError, match="negative"):
            layer.crop(3)


def test_p17_rope_of_any_shape_is_projected():
    keep = torch.tensor([[True, False, True, True, False], [True, True, False, False, False]])
    alive = Alive.of(keep, [3, 2])
    cosine = torch.arange(5.0)[None, :, None].expand(1, 5, 2)  # batch 1 serves every row
    two = project_positions((cosine, cosine + 10), alive)
    assert isinstance(two, tuple)
    assert two[0][0, :, 0].tolist() == [0, 2, 3]
    assert two[1][1, -2:, 0].tolist() == [10, 11]
    assert project_positions(cosine, alive).shape == (2, 3, 2)  # one tensor, as Llama 4 passes
    sections = torch.stack([cosine, cosine + 10, cosine + 20])  # [3, 1, S, D], M-RoPE before transformers 5.20
    assert project_positions(sections, alive)[2, 0, :, 0].tolist() == [20, 22, 23]


def test_guessed_tokens_behind_the_prompt_do_not_rate_it():
    visual = torch.tensor([[False, True, True, False, False, False]])
    shape = MediumShape("image", (1, 1, 2))
    layout = Layout.build(visual, torch.ones_like(visual), [[shape]], prompt_length=4)
    assert rater_columns(layout, "last") == [[[3]]]
    assert rater_columns(layout, "all") == [[[0, 1, 2, 3]]]
    assert rater_columns(layout, "window:2") == [[[2, 3]]]
    assert rater_columns(layout, "last", output_rates=True) == [[[5]]]


def test_padding_never_rates():
    inputs = prompts("llava", 3, side="right")
    codes = (inputs["input_ids"] == tiny.IMAGE) & real(inputs)
    shape = MediumShape("image", (1, 6, 6))
    layout = Layout.build(codes, real(inputs), [[shape], [shape, shape], []])
    for query in ("last", "all", "text", "window:4"):
        for row, (columns,) in enumerate(rater_columns(layout, query)):
            assert bool(real(inputs)[row, columns].all())
