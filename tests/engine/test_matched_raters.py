"""Raters that match the picture: which they are, and their attention, against the plain model's states and eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import families
from foveate.core.selection import Selection
from foveate.core.view import AttentionRows, Importance, TokenView
from foveate.engine import attention_rows, decoder, prefill
from tests import examples, tiny
from tests.oracles.dense_reference import decoder_layers, eager_attention
from tests.oracles.selectors import raters

WEIGHTS = 1e-5
MATCHED = AttentionRows("matched")
(ASKING,) = [one for one in examples.firsts() if MATCHED in one.needs()]


def entering(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """States of the plain model in front of its decoder."""
    found: list[Tensor] = []
    handle = decoder_layers(model)[0].register_forward_pre_hook(
        lambda module, args, kwargs: found.append((args[0] if args else kwargs["hidden_states"]).clone()), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    handle.remove()
    return found[0]


def expected_raters(family: str, model: Any, inputs: dict[str, Tensor], places: list[Any]) -> list[list[int]]:
    """Columns that rate the pictures of each row, by plain loops. `places` are (row, columns) of its visual tokens."""
    states = entering(model, inputs)
    placeholders = families.get(family).placeholder_ids(model.config).values()
    found = []
    for row, (ids, own) in enumerate(zip(inputs["input_ids"].tolist(), states, strict=True)):
        visual = [column for at, columns in places if at == row for column in columns.tolist()]
        if not visual:  # a row without a picture
            found.append([])
            continue
        last = max(column for column, token in enumerate(ids) if token in placeholders)
        text = [column for column in range(last + 1, len(ids)) if bool(inputs["attention_mask"][row, column])]
        found.append([text[number] for number in raters(own[visual], own[text])])
    return found


def told(model: Any, inputs: dict[str, Tensor], plan: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Any]]:
    """What the stage is shown, [H, N] for each medium, and (row, columns) of it, in one order."""
    seen: list[Tensor] = []
    places: list[tuple[int, Tensor]] = []
    original = prefill._view

    def noted(running: Any, stage: Any, layer: int, spans: Any, *rest: Any) -> Any:
        view = original(running, stage, layer, spans, *rest)
        if MATCHED in view.observed:
            seen.extend(view.observe(MATCHED))
            places.extend((span.row, span.columns) for span in spans)
        return view

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(prefill, "_view", noted)
        with foveate.attach(model, plan):
            model(**inputs, use_cache=False)
    return seen, places


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_their_rows_equal_eager_attention(model_of, monkeypatch, family, side):
    model, maker = model_of(family, "sdpa"), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3), side=side)
    layer = tiny.FIRST_LAYER[family]
    measured = max(full for full in tiny.full_layers(family) if full < layer)
    monkeypatch.setattr(attention_rows, "_ROWS_AT_ONCE", 48)  # several chunks
    seen, places = told(model, inputs, f"{ASKING.name}(layer={layer}, keep=0.5)", monkeypatch)
    chosen = expected_raters(family, model, inputs, places)
    attention = eager_attention(model, inputs, {})[measured]
    assert seen
    for rows, (row, columns) in zip(seen, places, strict=True):
        expected = attention[row][:, chosen[row]].mean(1)[:, columns]
        assert float((rows - expected).abs().max()) < WEIGHTS


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_the_raters_of_a_row_are_the_same_alone_and_in_company(model_of, monkeypatch, family):
    model, maker = model_of(family, "sdpa"), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    plan = f"{ASKING.name}(layer={tiny.FIRST_LAYER[family]}, keep=0.5)"
    together, _ = told(model, maker.inputs(rows), plan, monkeypatch)
    alone = [part for row in rows for part in told(model, maker.inputs([row]), plan, monkeypatch)[0]]
    assert len(alone) == len(together)
    for part in alone:  # groups of equal size come together
        assert any(part.shape == other.shape and torch.allclose(part, other, atol=WEIGHTS) for other in together)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_some_words_rate_and_some_do_not(model_of, monkeypatch, family):
    """Else the tests above would not tell them from all the text."""
    model, maker = model_of(family, "sdpa"), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    found: list[Tensor] = []
    original = decoder.matching_text
    monkeypatch.setattr(decoder, "matching_text", lambda *given: found.append(original(*given)) or found[-1])
    _, places = told(model, inputs, f"{ASKING.name}(layer=2, keep=0.5)", monkeypatch)
    for row, columns in enumerate(expected_raters(family, model, inputs, places)):
        if not columns:
            continue
        real = inputs["attention_mask"][row].bool()
        assert 0 < len(columns) < int(real.sum())
        assert not bool(found[0][row][real].all())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_they_are_matched_with_what_a_stage_in_front_of_the_model_leaves(model_of, monkeypatch, family):
    model, maker = model_of(family, "sdpa"), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    found: list[Any] = []
    original = decoder.matching_text

    def noted(running: Any, hidden: Tensor) -> Tensor:
        counts = original(running, hidden)
        found.append((counts, torch.cat([span.columns for span in running.left.spans])))
        return counts

    monkeypatch.setattr(decoder, "matching_text", noted)
    with torch.no_grad(), foveate.attach(model, f"uniform(site=pre_llm, keep=0.4) | {ASKING.name}(layer=2, keep=0.5)"):
        model(**inputs)
    counts, visual = found[0]
    states = entering(model, inputs)[0]
    placeholders = families.get(family).placeholder_ids(model.config).values()
    ids = inputs["input_ids"][0].tolist()
    every = [column for column, token in enumerate(ids) if token in placeholders]
    assert len(visual) < len(every)
    text = list(range(every[-1] + 1, len(ids)))
    assert counts[0, text].nonzero().flatten().tolist() == raters(states[visual], states[text])


def test_text_that_matches_evenly_rates_as_a_whole(model_of, monkeypatch):
    """The same word again and again: no one of them does better than all."""
    model, maker = model_of("llava", "sdpa"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    placeholders = families.get("llava").placeholder_ids(model.config).values()
    last = max(column for column, token in enumerate(inputs["input_ids"][0].tolist()) if token in placeholders)
    inputs["input_ids"][0, last + 1 :] = inputs["input_ids"][0, -1]
    found: list[Tensor] = []
    original = decoder.matching_text
    monkeypatch.setattr(decoder, "matching_text", lambda *given: found.append(original(*given)) or found[-1])
    with torch.no_grad(), foveate.attach(model, f"{ASKING.name}(layer=2, keep=0.5)"):
        model(**inputs)
    assert bool(found[0].all())


@pytest.mark.parametrize("need", [AttentionRows("matched"), AttentionRows("matched", rope=False), Importance("matched")])
def test_whoever_asks_for_words_that_match_gets_them(model_of, monkeypatch, need):
    model, maker = model_of("llava", "sdpa"), tiny.Maker("llava")
    calls: list[Any] = []
    original = decoder.matching_text
    monkeypatch.setattr(decoder, "matching_text", lambda *given: calls.append(given) or original(*given))

    def first(self: Any, view: TokenView, keep: int) -> Selection:
        return Selection(torch.arange(keep).expand(view.group_count, -1))

    monkeypatch.setattr(type(ASKING), "needs", lambda self: (need,))
    monkeypatch.setattr(type(ASKING), "select", first)
    with torch.no_grad(), foveate.attach(model, f"{ASKING.name}(layer=2, keep=0.5)"):
        model(**maker.inputs(tiny.ragged_rows(maker, 1)))
    assert len(calls) == 1
