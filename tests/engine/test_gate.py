"""Gated decoding: cached, uncached and teacher-forced answers against a plain model under hand-made masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import families
from foveate.engine import gate as gate_module
from foveate.engine.cache_kinds import lasting_bytes, stored_bytes, ungated_bytes
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import PlanError
from tests import tiny
from tests.oracles.gated_reference import gated_reference
from tests.spies import settled_state, state_of

LOGITS = 2e-4  # as the oracles of decoder stages
TOKENS = 12
PLANS = (
    "random_gate(layer={l}, keep=0.5, recent=0)",
    "stride_gate(layer={l}, keep=0.3, recent=0)",
    "random_gate(layer={l}, keep=0.4, recent=3, first=2)",
    "fastv(layer={l}, keep=0.5) | random_gate(layer={l}, keep=0.5, recent=0)",
    "random(site=pre_llm, keep=0.5) | fastv(layer={m}, keep=0.5) | stride_gate(layer={l}, keep=0.5, recent=0)",
)


def plan_for(family: str, text: str) -> str:
    """The plan at layers where the family can have it."""
    return text.format(l=tiny.FIRST_LAYER[family], m=tiny.SECOND_LAYER[family])


def gate_layer(family: str) -> int:
    return tiny.FIRST_LAYER[family]


def prompt(family: str, batch: int = 3, side: str = "left") -> dict[str, Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch), side)


def columns_left(trace: Any, texts: list[str], width: int, rows: int) -> dict[int, Tensor]:
    """{layer: [B, S]} of what the token stages left."""
    alive: dict[int, Tensor] = {}
    for number, text in enumerate(texts):
        layer = 0 if "pre_llm" in text else int(text.partition("layer=")[2].partition(",")[0])
        left = torch.ones(rows, width, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            left[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer] = left
    return alive


def rejected_columns(trace: Any, length: int) -> Tensor:
    """[B, S] of the columns that the gate rejected, from what the trace says."""
    kept = torch.stack(trace.answer_kept)
    return torch.cat([torch.zeros(len(kept), length, dtype=torch.bool), ~kept], dim=1)


def extended(inputs: dict[str, Tensor], sequences: Tensor, family: str) -> dict[str, Tensor]:
    """The inputs of prompt and answer together; the newest token never entered the model."""
    ids = sequences[:, :-1]
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), new, dtype=torch.long)], dim=1)
    longer = {**inputs, "input_ids": ids, "attention_mask": mask}
    side = families.get(family).tiny_batch(families.get(family).tiny_config(), ids, [])
    if "token_type_ids" in side:
        side["token_type_ids"][:, -new:] = side["token_type_ids"][:, -new:] + (family == "paligemma")  # 1 is read causally
    return {**longer, **{name: value for name, value in side.items() if name not in ("input_ids", "attention_mask")}}


def answers(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return tiny.generate(model, inputs, TOKENS, **options)


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_b_i_decoding_equals_a_masked_plain_model_that_reads_the_whole_answer(model_of, family, text, backend):
    model, inputs = model_of(family, backend), prompt(family)
    length = inputs["input_ids"].shape[1]
    with foveate.attach(model, plan_for(family, text)) as attachment:
        answer = answers(model, inputs)
        trace = attachment.trace
    kept = torch.stack(trace.answer_kept)
    assert kept.shape == (3, TOKENS - 1)
    assert not kept.all() and kept.any()
    longer = extended(inputs, answer.sequences, family)
    texts = [stage for stage, _ in trace.media[0].stages]
    alive = columns_left(trace, texts, length, 3)
    recent = 3 if "recent=3" in text else 1
    with torch.no_grad(), gated_reference(model, gate_layer(family), rejected_columns(trace, length), recent, alive):
        logits = model(**longer, use_cache=False).logits
    for step in range(TOKENS):
        there = logits[:, length - 1 + step]
        torch.testing.assert_close(answer.logits[step], there, atol=LOGITS, rtol=0)


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_c_d_rows_alone_and_answers_without_a_cache_are_the_same(model_of, family, text):
    model, maker = model_of(family), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows)
    with foveate.attach(model, plan_for(family, text)) as attachment:
        together = answers(model, inputs)
        if "fastv" not in text:  # which chooses pictures' tokens anew at every step without a cache
            decided = attachment.trace.answer_kept
            uncached = answers(model, inputs, use_cache=False)
            assert tiny.greatest_difference(together, uncached) < LOGITS
            assert all(torch.equal(a, b) for a, b in zip(decided, attachment.trace.answer_kept, strict=True))
        for number, row in enumerate(rows):
            alone = answers(model, maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rejected_slots_are_taken_away_and_nothing_else_changes(model_of, family, monkeypatch):
    model, inputs = model_of(family), prompt(family)
    plan = plan_for(family, PLANS[0])
    with foveate.attach(model, plan):
        before = answers(model, inputs)
        monkeypatch.setattr(gate_module, "CLEAN_EVERY", 3)
        after = answers(model, inputs)
    assert tiny.greatest_difference(before, after) < LOGITS
    layer, length = gate_layer(family), inputs["input_ids"].shape[1]
    stored = [one for one in cache_in(after).layers[layer:] if not one.is_sliding]
    assert stored
    for one in stored:
        assert one.get_seq_length() == length + TOKENS - 1
        assert one.keys.shape[-2] < length + TOKENS - 1
    assert cache_in(after).layers[0].keys.shape[-2] == length + TOKENS - 1 or tiny.slides(family)


@pytest.mark.parametrize("text", [PLANS[0], PLANS[3]])
def test_bytes_that_last_are_those_of_a_cache_that_was_just_cleaned(model_of, monkeypatch, text):
    model, inputs = model_of("llava"), prompt("llava")
    with foveate.attach(model, plan_for("llava", text)) as attachment:
        waiting = cache_in(answers(model, inputs))
        kept = torch.stack(attachment.trace.answer_kept)
        monkeypatch.setattr(gate_module, "CLEAN_EVERY", 1)
        cleaned = cache_in(answers(model, inputs))
        rejected = int((~kept[0]).sum())
    with foveate.attach(model, text.format(l=2).partition("random_gate")[0].strip(" |") or "none"):
        ungated = stored_bytes(cache_in(answers(model, inputs)))
    assert stored_bytes(waiting) == ungated
    assert lasting_bytes(waiting) < stored_bytes(cleaned) <= stored_bytes(waiting)  # the last token was not cleaned yet
    assert lasting_bytes(waiting) == lasting_bytes(cleaned)
    # By hand: keys and values of 4 bytes in the layers behind the gate, for each row and rejected token.
    shape = waiting.layers[2].keys.shape
    slot = 2 * 4 * shape[0] * shape[1] * shape[3]
    assert stored_bytes(waiting) - lasting_bytes(waiting) == rejected * slot * (len(waiting.layers) - 2)
    assert ungated_bytes(cleaned, 2, rejected) == ungated_bytes(waiting, 2, rejected) == ungated
    with foveate.attach(model, "fastv(layer=2, keep=0.5)"):
        plain = cache_in(answers(model, inputs))
    assert lasting_bytes(plain) == stored_bytes(plain)


def test_a_row_whose_answer_is_rejected_more_often_is_padded_and_not_mixed_up(model_of, monkeypatch):
    """Rows of one batch that keep different numbers of tokens, which a gate by number never does."""
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", 2)
    model, maker = model_of("llava"), tiny.Maker("llava")
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows)
    with foveate.attach(model, "random_gate(layer=2, keep=0.3, recent=0)"):
        plain = answers(model, inputs)
    # Tokens that only the first row says are protected, so that its row keeps more.
    said = plain.sequences[:, inputs["input_ids"].shape[1] :]
    own = sorted(set(said[0].tolist()) - set(said[1:].flatten().tolist()))
    assert own
    plan = f"random_gate(layer=2, keep=0.3, protect=[{', '.join(map(str, own))}], recent=0)"
    with foveate.attach(model, plan) as attachment:
        together = answers(model, inputs)
        counts = [int(kept.sum()) for kept in attachment.trace.answer_kept]
        assert len(set(counts)) > 1
        for number, row in enumerate(rows):
            alone = answers(model, maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_storing_everything_changes_nothing(model_of, family):
    model, inputs = model_of(family), prompt(family)
    plain = answers(model, inputs)
    with foveate.attach(model, plan_for(family, "random_gate(layer={l}, keep=100%)")) as attachment:
        gated = answers(model, inputs)
        assert torch.stack(attachment.trace.answer_kept).all()
    assert tiny.greatest_difference(plain, gated) < 1e-5
    assert torch.equal(plain.sequences, gated.sequences)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_chat_without_pictures_is_gated_too(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(9)]), tiny.Row([maker.text(6)])])
    with foveate.attach(model, plan_for(family, PLANS[0])) as attachment:
        cached = answers(model, inputs)
        kept = torch.stack(attachment.trace.answer_kept)
        uncached = answers(model, inputs, use_cache=False)
    assert not kept.all()
    assert tiny.greatest_difference(cached, uncached) < LOGITS
    longer = extended(inputs, cached.sequences, family)
    length = inputs["input_ids"].shape[1]
    rejected = torch.cat([torch.zeros(2, length, dtype=torch.bool), ~kept], dim=1)
    with torch.no_grad(), gated_reference(model, gate_layer(family), rejected):
        logits = model(**longer, use_cache=False).logits
    for step in range(TOKENS):
        torch.testing.assert_close(cached.logits[step], logits[:, length - 1 + step], atol=LOGITS, rtol=0)


@pytest.mark.pairs
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("text", PLANS[:4])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_i_reading_an_answer_at_once_equals_decoding_it(model_of, family, text, cached):
    model, inputs = model_of(family), prompt(family)
    length = inputs["input_ids"].shape[1]
    with foveate.attach(model, plan_for(family, text)) as attachment:
        answer = answers(model, inputs)
        longer = extended(inputs, answer.sequences, family)
        with torch.no_grad(), attachment.conversation(prompt_length=length):
            if cached:
                first = model(**inputs, use_cache=True)
                new = {"input_ids": longer["input_ids"][:, length:], "attention_mask": longer["attention_mask"]}
                rest = {k: v[:, length:] for k, v in longer.items() if k in ("token_type_ids", "mm_token_type_ids")}
                if tiny.axes_differ(family):  # whose own positions a bare call with a cache must be told
                    count = longer["attention_mask"].cumsum(1)[:, length:] - 1
                    rest["position_ids"] = (count + model.model.rope_deltas).expand(3, -1, -1)
                logits = model(**new, **rest, **{CACHE: cache_in(first)}).logits
                logits = torch.cat([first.logits[:, -1:], logits], dim=1)
            else:
                from transformers import DynamicCache

                logits = model(**longer, **{CACHE: DynamicCache(config=model.config)}).logits[:, length - 1 :]
    for step in range(TOKENS):
        torch.testing.assert_close(answer.logits[step], logits[:, step], atol=LOGITS, rtol=0)


@pytest.mark.full
@pytest.mark.parametrize("text", PLANS[:4])
@pytest.mark.parametrize("family", [name for name in tiny.ALL_FAMILIES if name not in tiny.FAMILIES])
def test_b_i_on_every_other_family(model_of, family, text):
    test_b_i_decoding_equals_a_masked_plain_model_that_reads_the_whole_answer(model_of, family, text, "sdpa")


@pytest.mark.pairs
@pytest.mark.since((5, 17), "before, prompt lookup needs an end token")
@pytest.mark.parametrize("clean_every", [2, 64])
@pytest.mark.parametrize("text", PLANS[:4])
def test_guesses_of_assisted_decoding_are_gated_as_if_they_came_one_by_one(model_of, monkeypatch, text, clean_every):
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", clean_every)
    model, inputs = model_of("llava"), prompt("llava", batch=1)
    with foveate.attach(model, text.format(l=2, m=3)):
        plain = answers(model, inputs)
        assisted = answers(model, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(plain.sequences, assisted.sequences)


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
def test_beams_take_their_slots_along(model_of):
    model, inputs = model_of("llava"), prompt("llava")
    with foveate.attach(model, PLANS[0].format(l=2)):
        cached, uncached = (
            model.generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False)
        )
    assert torch.equal(cached, uncached)


@pytest.mark.pairs
@pytest.mark.parametrize("clean_every", [2, 64])
@pytest.mark.parametrize("recent", [0, 3])
def test_a_second_turn_sees_what_the_first_one_stored(model_of, monkeypatch, recent, clean_every):
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", clean_every)
    plan = f"random_gate(layer=2, keep=0.5, recent={recent})"
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    length = inputs["input_ids"].shape[1]
    question = maker.text(6)[None]
    with foveate.attach(model, plan) as attachment:
        first = answers(model, inputs)
        kept = torch.stack(attachment.trace.answer_kept)
        ids = torch.cat([first.sequences, question], dim=1)
        second = answers(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **{CACHE: cache_in(first)})
        later = torch.stack(attachment.trace.answer_kept)
    # The last token of the first answer is read with the second prompt, as part of it.
    rejected = torch.zeros(1, second.sequences.shape[1] - 1, dtype=torch.bool)
    rejected[:, length : length + kept.shape[1]] = ~kept
    rejected[:, ids.shape[1] :] = ~later
    whole = {**inputs, "input_ids": second.sequences[:, :-1], "attention_mask": torch.ones_like(second.sequences[:, :-1])}
    with torch.no_grad(), gated_reference(model, 2, rejected, max(recent, 1)):
        logits = model(**whole, use_cache=False).logits
    for step in range(TOKENS):
        torch.testing.assert_close(second.logits[step], logits[:, ids.shape[1] - 1 + step], atol=LOGITS, rtol=0)


def test_labels_say_where_an_answer_begins(model_of):
    model, maker = model_of("llava"), tiny.Maker("llava")
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows, side="right")
    labels = inputs["input_ids"].clone()
    start = torch.tensor([[14], [26], [4]])
    column = torch.arange(labels.shape[1])[None]
    labels[(column < start) | (inputs["attention_mask"] == 0)] = -100
    with torch.no_grad(), foveate.attach(model, "stride_gate(layer=2, keep=0.5, recent=0)") as attachment:
        gated = model(**inputs, labels=labels).logits
        decided = attachment.trace.answer_kept
    rejected = torch.zeros_like(labels, dtype=torch.bool)
    for row in range(3):
        assert len(decided[row]) == int((labels[row] != -100).sum())
        rejected[row, labels[row] != -100] = ~decided[row]
    with torch.no_grad(), gated_reference(model, 2, rejected):
        reference = model(**inputs, use_cache=False).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(gated[real], reference[real], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("name", ["random_gate", "stride_gate"])
def test_without_options_the_last_32_tokens_are_seen_whatever_is_stored(model_of, name):
    model, inputs = model_of("llava"), prompt("llava")
    found = {}
    for options in ("", ", recent=32", ", recent=0", ", recent=1"):
        with foveate.attach(model, f"{name}(layer=2, keep=0.5{options})") as attachment:
            found[options] = answers(model, inputs)
            assert not torch.stack(attachment.trace.answer_kept).all()
    assert tiny.greatest_difference(found[""], answers(model, inputs)) < LOGITS  # the answer is shorter
    assert tiny.greatest_difference(found[""], found[", recent=32"]) == 0
    assert tiny.greatest_difference(found[", recent=0"], found[", recent=1"]) == 0
    assert tiny.greatest_difference(found[""], found[", recent=0"]) > LOGITS


def test_protected_and_first_tokens_are_stored(model_of):
    model, inputs = model_of("llava"), prompt("llava")
    with foveate.attach(model, "random_gate(layer=2, keep=0.000001, first=3, recent=0)") as attachment:
        answer = answers(model, inputs)
        kept = torch.stack(attachment.trace.answer_kept)
        assert kept[:, :3].all() and not kept[:, 3:].any()
        length = inputs["input_ids"].shape[1]
    token = int(answer.sequences[0, length + 5])
    with foveate.attach(model, f"random_gate(layer=2, keep=0.000001, protect=[{token}], recent=0)") as attachment:
        answer = answers(model, inputs)
        kept = torch.stack(attachment.trace.answer_kept)
        assert torch.equal(kept, answer.sequences[:, length:-1] == token)


def test_two_gates_and_a_gate_behind_the_last_layer_are_refused(model_of):
    with pytest.raises(PlanError, match="one stage that gates decoding"):
        foveate.attach(model_of("llava"), "random_gate(layer=2, keep=0.5) | stride_gate(layer=3, keep=0.5)")
    with pytest.raises(PlanError, match="this model has 5 decoder layers"):
        foveate.attach(model_of("llava"), "random_gate(layer=5, keep=0.5)")


def test_f_detaching_leaves_no_trace(model_of):
    model, inputs = model_of("llava"), prompt("llava")
    plain = answers(model, inputs)
    before = settled_state(model, inputs)
    with foveate.attach(model, PLANS[0].format(l=2)):
        answers(model, inputs)
    assert state_of(model) == before
    after = answers(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, after.logits, strict=True))
