"""The invariants of the engine, one test each. The sixth is in test_memory.py, the eighth in test_generation.py."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.selection import Selection
from foveate.engine.attachment import Attachment
from foveate.engine.compat import cache_in
from foveate.engine.slots import SlotLayer
from foveate.spec import parse
from tests import tiny
from tests.oracles.controls import pool_matrix
from tests.spies import alive_columns, layer_calls, real, state_of
from tests.syncs import on_device, syncs_of_foveate, weights_on_device

# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
# A conserving merge's weights are shares of counts below 100, summed in fp32.
SHARES = 1e-5

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def prompts(family: str, batch: int = 3, side: str = "left") -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch), side=side)


@every_family
def test_invariant_1_kept_tokens_ascend_and_text_is_untouched(model_of, family):
    model, inputs = model_of(family), prompts(family)
    visual = (inputs["input_ids"] == tiny.IMAGE) | (inputs["input_ids"] == tiny.VIDEO)
    with torch.no_grad(), foveate.attach(model, "random(site=pre_llm, keep=0.7) | fastv(layer=2, keep=0.5)") as attachment:
        answer = tiny.generate(model, inputs, tokens=2)
        first, second = alive_columns(attachment.trace, inputs)
        for entry in attachment.trace:
            for kept in entry.kept:
                assert bool((kept[1:] > kept[:-1]).all())
            assert set(entry.kept[1].tolist()) < set(entry.kept[0].tolist())
        for layer, alive in ((0, first), (4, second)):
            slots = cache_in(answer).layers[layer].positions(3, torch.device("cpu"))
            if not tiny.slides(family):  # layers 0 and 4 differ in kind then; a sliding one keeps the last of them
                for row in range(3):
                    stored = [column for column in slots[row].tolist() if 0 <= column < visual.shape[1]]
                    assert stored == torch.nonzero(alive[row] & real(inputs)[row]).flatten().tolist()
    assert bool((first & second)[~visual].all())


@every_family
def test_invariant_1_a_text_only_prompt_is_an_exact_no_op(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(9)]), tiny.Row([maker.text(14)])])
    plain = tiny.generate(model, inputs)
    with foveate.attach(model, "random(site=pre_llm, keep=0.5) | fastv(layer=2, keep=0.5)"):
        answer = tiny.generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(answer.logits, plain.logits, strict=True))
    assert [layer.keys.shape for layer in cache_in(answer).layers] == [layer.keys.shape for layer in cache_in(plain).layers]


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("plan", ["fastv(layer=2, keep=0.4)", "random(site=pre_llm, keep=0.4)"])
def test_invariant_2_kept_tokens_keep_their_positions_and_decode_continues_from_the_full_length(model_of, family, plan):
    model, inputs = model_of(family), prompts(family)
    layer = 3
    with layer_calls(model, layer) as plain:
        tiny.generate(model, inputs)
    with foveate.attach(model, plan) as attachment, layer_calls(model, layer) as calls:
        tiny.generate(model, inputs)
        alive = alive_columns(attachment.trace, inputs)[0] & real(inputs)
    assert calls[0]["hidden"].shape[1] == int(alive.sum(1).max()) < inputs["input_ids"].shape[1]
    for part, full in zip(calls[0]["position_embeddings"], plain[0]["position_embeddings"], strict=True):
        # Before transformers 5.20 M-RoPE arrives in three sections, [3, B, S, D].
        sections = [(part, full)] if full.ndim == 3 else list(zip(part, full, strict=True))
        for own, whole in sections:
            whole = whole.expand(3, -1, -1)
            for row in range(3):
                expected = whole[row, alive[row]]
                assert torch.equal(own[row, -len(expected) :], expected)
    assert len(calls) == len(plain) == 6
    for call, step in zip(calls[1:], plain[1:], strict=True):
        for part, full in zip(call["position_embeddings"], step["position_embeddings"], strict=True):
            assert torch.equal(part, full)


@every_family
def test_invariant_3_the_outside_sees_columns_and_a_layer_stores_slots(model_of, family):
    model, inputs = model_of(family), prompts(family)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), foveate.attach(model, "fastv(layer=2, keep=0.4)") as attachment:
        out = model(**inputs, use_cache=True, output_hidden_states=True)
        alive = alive_columns(attachment.trace, inputs)[0] & real(inputs)
    cache = cache_in(out)
    assert out.logits.shape[1] == width
    assert all(states.shape[1] == width for states in out.hidden_states)
    for index, layer in enumerate(cache.layers):
        assert layer.get_seq_length() == width
        if index < 2:
            assert not isinstance(layer, SlotLayer)
            continue
        assert isinstance(layer, SlotLayer)
        positions = layer.positions(3, torch.device("cpu"))
        assert positions.shape[1] == layer.keys.shape[2] == layer.slots
        for row in range(3):
            survivors = torch.nonzero(alive[row]).flatten().tolist()
            expected = ([-1] * 500 + survivors)[-(int(alive.sum(1).max())) :][-layer.slots :]
            assert positions[row].tolist() == expected
    assert cache.get_seq_length() == width


@every_family
def test_invariant_4_layers_below_the_cut_are_full_and_kv_bytes_shrink(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    width = inputs["input_ids"].shape[1]
    visual = int((inputs["input_ids"] == tiny.IMAGE).sum())
    kept = width - visual + int(visual * 0.25)
    plain = cache_in(tiny.generate(model, inputs, tokens=1))
    with foveate.attach(model, "fastv(layer=2, keep=0.25)") as attachment:
        cache = cache_in(tiny.generate(model, inputs, tokens=1))
        measured = attachment.last.measured.prefill_kv_bytes
    windows = [getattr(layer, "sliding_window", None) for layer in plain.layers]
    slots = [layer.keys.shape[2] for layer in cache.layers]
    full = [width, width] + [kept] * (len(slots) - 2)
    assert slots == [count if window is None else min(count, window - 1) for count, window in zip(full, windows, strict=True)]
    per_slot = plain.layers[0].keys[0, :, 0].nbytes * 2
    assert measured == sum(slots) * per_slot
    # Not a view of something bigger. (A sliding layer of transformers is one, pruned or not.)
    for layer, window in zip(cache.layers, windows, strict=True):
        assert window is not None or layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
    assert measured < sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("plan", ["fastv(layer=2, keep=0.4)", "uniform(site=pre_llm, keep=0.5) | fastv(layer=2, keep=0.5)"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_invariant_5_rows_of_a_padded_batch_equal_the_rows_alone(model_of, family, plan, side):
    model, maker, alone = model_of(family), tiny.Maker(family), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows, side=side)
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        together, trace = model(**inputs).logits, attachment.trace
        for number, row in enumerate(rows):
            single = model(**alone.inputs([row])).logits[0]
            assert float((together[number, real(inputs)[number]] - single).abs().max()) < LOGITS
            if number < 2:
                kept = [entry.kept_index.tolist() for entry in trace.sample(number)]
                assert kept == [entry.kept_index.tolist() for entry in attachment.trace]


@every_family
def test_invariant_5_another_row_changes_nothing(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    first, second, third = tiny.ragged_rows(maker, 3)
    other = tiny.Row([piece if isinstance(piece, tiny.TinyMedium) else maker.text(len(piece)) for piece in second.pieces])
    with torch.no_grad(), foveate.attach(model, "fastv(layer=2, keep=0.4)"):
        one = model(**maker.inputs([first, second, third])).logits
        two = model(**maker.inputs([first, other, third])).logits
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[2], two[2])
    assert not torch.equal(one[1], two[1])


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("shortcut", [True, False])
def test_invariant_7_keeping_everything_is_bit_identical(model_of, family, shortcut):
    model, inputs = model_of(family), prompts(family)
    plan = parse("random(site=pre_llm, keep=100%) | fastv(layer=2, keep=100%)")
    plain = tiny.generate(model, inputs)
    before = state_of(model)
    with Attachment(model, plan, shortcut=shortcut):
        kept = tiny.generate(model, inputs)
    assert state_of(model) == before
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    assert any(isinstance(layer, SlotLayer) for layer in cache_in(kept).layers) is not shortcut
    again = tiny.generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))


MERGE = "pool(site=pre_llm) | fastv(layer=2, keep=0.5, query=text)"


@every_family
@pytest.mark.parametrize("plan", ["fastv(layer=2, keep=0.4)", MERGE])
@pytest.mark.parametrize("tokens", [2, pytest.param(65, marks=pytest.mark.full)])
def test_invariant_9_one_sync_per_prefill_and_none_in_decode_steps(model_of, family, plan, tokens, monkeypatch):
    # On an accelerator the values of a method's answer are checked once per attachment, not on every call.
    monkeypatch.setattr(Selection, "check_values", lambda self, token_count: None)
    model, inputs = model_of(family), prompts(family)
    with torch.no_grad(), foveate.attach(model, plan), weights_on_device(model):
        with syncs_of_foveate() as prefill:
            model(**on_device(inputs), use_cache=True)
        assert len(prefill) == 1, prefill
        with syncs_of_foveate() as answer:
            tiny.generate(model, on_device(inputs), tokens=tokens)
        assert len(answer) == 1, answer


def test_invariant_9_64_decode_steps_of_a_batch_need_no_sync(model_of, monkeypatch):
    monkeypatch.setattr(Selection, "check_values", lambda self, token_count: None)
    model = model_of("llava")
    with foveate.attach(model, "fastv(layer=2, keep=0.4)"), weights_on_device(model), syncs_of_foveate() as answer:
        tiny.generate(model, on_device(prompts("llava")), tokens=65)
    assert len(answer) == 1, answer


@every_family
@pytest.mark.parametrize("size", [2, 4])
def test_invariant_10_a_conserving_merge_is_a_partition(model_of, family, size):
    model, inputs = model_of(family), prompts(family, batch=2)
    grown: list[torch.Tensor] = []
    count = Selection.kept_sizes

    def note(self: Selection, sizes: torch.Tensor) -> torch.Tensor:
        grown.append(count(self, sizes))
        return grown[-1]

    plan = f"pool(site=pre_llm, size={size}) | uniform(layer=2, keep=0.5)"
    with torch.no_grad(), foveate.attach(model, plan) as attachment, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Selection, "kept_sizes", note)
        model(**inputs)
        trace = attachment.trace
    tokens = sum(entry.medium.shape.grid_tokens for entry in trace)
    dropped = 0.0
    for entry in trace:
        cells, (_, merged), (_, final) = pool_matrix(entry.medium.shape.grid, size), *entry.stages
        used = merged.to_dense()
        # Every original is in exactly one merged token, with the share it has there.
        assert bool(((used > 0).sum(0) == 1).all())
        assert float((used.sum(1) - 1).abs().max()) < SHARES
        assert [{i: pytest.approx(w) for i, w in cell.items()} for cell in cells] == [
            {i: w for i, w in enumerate(row.tolist()) if w} for row in used
        ]
        # Behind the drop the recorded edges still say what every survivor is made of.
        lost = (final.to_dense() > 0).sum(0) == 0
        dropped += float(lost.sum())
        own = torch.isin(entry.kept[0], entry.kept[1])
        assert torch.equal(final.to_dense(), used[own])
    # The merge accounts for every original; the drop behind it for all but those of the tokens it dropped.
    assert sum(float(sizes.sum()) for sizes in grown) == tokens + (tokens - dropped)
