"""Calls as users make them: pictures at the end, calls within calls, wrappers, packed rows, embeddings, loops by hand."""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, StoppingCriteria

import foveate
from foveate import families
from foveate.errors import UnsupportedCombination
from tests import tiny
from tests.engine.prompts import FASTV, LOGITS, MODELS, plan_of, prompt
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns
from tests.tiny import Maker, Row, tiny_model

ENDS = (FASTV, "random(site=pre_llm, keep=0.3)", "uniform(site=pre_llm, keep=1tok)", "pool(site=pre_llm)")
EVERY = [pytest.param(name, marks=[] if name in tiny.FAMILIES else pytest.mark.full) for name in tiny.ALL_FAMILIES]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# A prompt that ends with a picture.


@pytest.mark.pairs
@pytest.mark.parametrize("plan", ENDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", EVERY)
def test_the_last_column_of_a_prompt_stays_whatever_it_is(family, side, plan):
    model, maker, layer = MODELS[family, "sdpa"], Maker(family), tiny.FIRST_LAYER[family]
    rows = [Row([maker.text(6), maker.picture(0)]), Row([maker.text(3), maker.picture(1), maker.text(9)])]
    inputs = maker.inputs(rows, side)
    with foveate.attach(model, plan_of(family, plan)) as attachment:
        logits = model(**inputs, **tiny.padded_on(side, family)).logits
        (alive,) = alive_columns(attachment.trace, inputs)
        counts = [len(entry.kept_index) for entry in attachment.trace]
        assert torch.equal(attachment.live_columns.cpu(), alive & inputs["attention_mask"].bool())
    last = [int(row.nonzero()[-1]) for row in inputs["attention_mask"]]
    assert all(bool(alive[row, column]) for row, column in enumerate(last))
    if "pool" not in plan:
        with dense_reference(model, {layer if "fastv" in plan else 0: alive}):
            reference = model(**inputs, **tiny.padded_on(side, family)).logits
        live = alive & inputs["attention_mask"].bool()
        assert float((logits - reference)[live].abs().max()) < LOGITS
    assert all(count >= 1 for count in counts)


def test_a_picture_at_the_end_keeps_exactly_what_the_plan_says():
    model, maker = MODELS["llava", "sdpa"], Maker("llava")
    inputs = maker.inputs([Row([maker.text(6), maker.picture()])])
    for keep, count in (("0.25", 9), ("1tok", 1), ("7", 7), ("100%", 36)):
        for method in ("fastv(layer=2", "fastv(layer=2, topk=window:3", "random(layer=2", "uniform(layer=2"):
            with foveate.attach(model, f"{method}, keep={keep})") as attachment:
                model(**inputs)
                kept = attachment.trace.media[0].kept_index.tolist()
            assert len(kept) == count and kept[-1] == 35 and kept == sorted(kept)


@pytest.mark.parametrize("plan", ["random(site=vision, layer=1, keep=0.5)", "tome(site=vision, layer=1, keep=0.6)"])
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if tiny.encoder_layer(family)])
def test_stages_inside_the_encoder_leave_the_last_column_too(family, plan):
    model, maker = MODELS[family, "sdpa"], Maker(family)
    inputs = maker.inputs([Row([maker.text(6), maker.picture(0)]), Row([maker.picture(1), maker.text(4)])])
    with foveate.attach(model, plan) as attachment:
        model(**inputs)
        assert bool(attachment.live_columns[0, -1])


# Calls within calls.


class Asking(StoppingCriteria):
    """Calls the model with another prompt at every step."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.model, self.inputs, self.found = model, inputs, []

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.found.append(self.model(**self.inputs).logits)
        return torch.zeros(len(ids), dtype=torch.bool)


@pytest.mark.pairs
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("length", [1, 3, 9, 48, 60])
@pytest.mark.parametrize(
    "plan", [FASTV, "random_gate(layer={layer}, keep=0.5, recent=0)", "fastv(layer={layer}, keep=0.25, effect=mask)"]
)
def test_a_text_that_is_read_within_generate_is_read_as_by_the_plain_model(plan, length, use_cache):
    model, inputs = MODELS["llava", "sdpa"], prompt()
    text = {"input_ids": Maker("llava", 5).text(length)[None]}
    wanted = model(**text).logits
    with foveate.attach(model, plan_of("llava", plan)) as attachment:
        undisturbed = tiny.generate(model, inputs, use_cache=use_cache)
        asking = Asking(model, text)
        answer = tiny.generate(model, inputs, use_cache=use_cache, stopping_criteria=[asking])
        assert torch.equal(answer.sequences, undisturbed.sequences)
        if "gate" not in plan:
            assert len(attachment.trace.media) == 1
    assert len(asking.found) == 6 and all(float((logits - wanted).abs().max()) < LOGITS for logits in asking.found)


def test_another_picture_that_is_asked_about_within_generate_is_pruned_by_its_own_layout():
    model, inputs, other = MODELS["llava", "sdpa"], prompt(), prompt(seed=7)
    maker = Maker("llava", 7)
    other = maker.inputs([Row([maker.text(11), maker.picture(), maker.text(2)])])
    for plan in (FASTV, "random(site=vision, layer=1, keep=0.5)"):
        with foveate.attach(model, plan_of("llava", plan)) as attachment:
            wanted = model(**other).logits
            undisturbed = tiny.generate(model, inputs)
            kept = attachment.trace.media[0].kept_index.tolist()
            asking = Asking(model, other)
            answer = tiny.generate(model, inputs, stopping_criteria=[asking])
            assert torch.equal(answer.sequences, undisturbed.sequences)
            assert attachment.trace.media[0].kept_index.tolist() == kept, "the trace is generate's own"
        assert all(float((logits - wanted).abs().max()) < LOGITS for logits in asking.found)


@pytest.mark.parametrize("length", [4, 48])
def test_guidance_with_a_negative_prompt_follows_its_formula(length):
    model, inputs, scale = MODELS["llava", "sdpa"], prompt(), 1.5
    negative = Maker("llava", 3).text(length)[None]
    with foveate.attach(model, FASTV.format(layer=2)) as attachment:
        options = {"guidance_scale": scale, "negative_prompt_ids": negative, "output_scores": True}
        answer = tiny.generate(model, inputs, **options)
        width = inputs["input_ids"].shape[1]
        for step, (logits, scores) in enumerate(zip(answer.logits, answer.scores, strict=True)):
            with attachment.disabled():
                read = torch.cat([negative, answer.sequences[:, width : width + step]], dim=1)
                without = model(input_ids=read).logits[:, -1].log_softmax(-1)
            wanted = scale * (logits.log_softmax(-1) - without) + without
            finite = scores > -1e30
            assert float((scores - wanted)[finite].abs().max()) < LOGITS


def test_a_call_within_a_forward_call_leaves_the_outer_one_as_it_was():
    model, inputs = MODELS["llava", "sdpa"], prompt()
    text, found = {"input_ids": Maker("llava", 5).text(20)[None]}, []
    plain = model(**text).logits
    with foveate.attach(model, FASTV.format(layer=2)):
        wanted = model(**inputs).logits
        layer = model.get_submodule("model.language_model.layers.3")
        inside: list[bool] = []

        def ask(*_: Any) -> None:
            if not inside:
                inside.append(True)
                found.append(model(**text).logits)

        handle = layer.register_forward_hook(ask)
        got = model(**inputs).logits
        handle.remove()
    assert float((found[0] - plain).abs().max()) < LOGITS
    assert torch.equal(got, wanted)


class Nested(LogitsProcessor):
    """Generates a little with other inputs at every step."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.model, self.inputs, self.found = model, inputs, []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.found.append(tiny.generate(self.model, self.inputs, tokens=2).sequences)
        return scores


def test_generate_within_generate():
    model, inputs = MODELS["llava", "sdpa"], prompt()
    maker = Maker("llava", 7)
    other = maker.inputs([Row([maker.text(11), maker.picture(), maker.text(2)])])
    with foveate.attach(model, FASTV.format(layer=2)):
        wanted, undisturbed = tiny.generate(model, other, tokens=2).sequences, tiny.generate(model, inputs, tokens=3)
        nested = Nested(model, other)
        answer = tiny.generate(model, inputs, tokens=3, logits_processor=[nested])
    assert torch.equal(answer.sequences, undisturbed.sequences)
    assert len(nested.found) == 3 and all(torch.equal(found, wanted) for found in nested.found)


@settings(max_examples=12)
@given(st.data())
def test_random_calls_within_an_answer_change_neither_it_nor_themselves(data):
    model, maker = MODELS["llava", "sdpa"], Maker("llava", data.draw(st.integers(0, 99)))

    def row() -> Row:
        pieces: list[Any] = [maker.text(data.draw(st.integers(1, 9)))]
        for _ in range(data.draw(st.integers(0, 3))):
            pieces += [maker.picture(), *([maker.text(data.draw(st.integers(1, 5)))] if data.draw(st.booleans()) else [])]
        return Row(pieces[1:] if len(pieces) > 1 and data.draw(st.booleans()) else pieces)

    side = data.draw(st.sampled_from(["left", "right"]))
    inputs = maker.inputs([row() for _ in range(data.draw(st.integers(1, 2)))])
    other = maker.inputs([row() for _ in range(data.draw(st.integers(1, 2)))], side)
    plan = data.draw(st.sampled_from([FASTV.format(layer=2), "random(site=pre_llm, keep=0.4)"]))
    with foveate.attach(model, plan):
        wanted, undisturbed = model(**other).logits, tiny.generate(model, inputs, tokens=3)
        asking = Asking(model, other)
        answer = tiny.generate(model, inputs, tokens=3, stopping_criteria=[asking], use_cache=data.draw(st.just(True)))
    assert torch.equal(answer.sequences, undisturbed.sequences)
    real = other["attention_mask"].bool()
    assert all(float((logits - wanted)[real].abs().max()) < LOGITS for logits in asking.found)


# Wrappers that put columns in front.


@contextmanager
def tuned(family: str):
    from peft import PromptTuningConfig, get_peft_model

    model = tiny_model(family)
    torch.manual_seed(0)
    numbers = dict(num_layers=tiny.layer_count(family), num_attention_heads=4, token_dim=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **numbers)).eval()
        yield wrapped


@pytest.mark.parametrize("plan", [FASTV, "random(site=pre_llm, keep=0.5)"])
@pytest.mark.parametrize("family", tiny.PLAIN_ANCHORS)
def test_virtual_tokens_of_prompt_tuning_are_text_in_front_of_the_picture(family, plan):
    maker = Maker(family)
    inputs = maker.inputs(
        [Row([maker.text(5), maker.picture(), maker.text(7)]), Row([maker.text(2), maker.picture(), maker.text(7)])]
    )
    with tuned(family) as wrapped, foveate.attach(wrapped, plan_of(family, plan)) as attachment:
        forward = wrapped(**inputs).logits[:, -1]
        kept = [entry.kept_index.tolist() for entry in attachment.trace]
        answer = tiny.generate(wrapped, inputs, tokens=1)
        assert [entry.kept_index.tolist() for entry in attachment.trace] == kept
    assert float((answer.logits[0] - forward).abs().max()) < LOGITS


# Several samples in one row.


def packed(family: str, model: Any) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Three samples alone, and the same in one row with positions that start anew."""
    maker = Maker(family)
    rows = [
        Row([maker.text(5), maker.picture(0), maker.text(7)]),
        Row([maker.text(3), maker.picture(1), maker.text(4), maker.picture(2)]),
        Row([maker.text(4)]),
    ]
    alone = [maker.inputs([row], mask=False) for row in rows]
    whole = maker.inputs([Row([piece for row in rows for piece in row.pieces])], mask=False)
    widths = [one["input_ids"].shape[1] for one in alone]
    positions = torch.cat([torch.arange(width) for width in widths])[None]
    base = model.get_submodule(families.get(family).base)
    if hasattr(base, "get_rope_index"):
        names = inspect.signature(base.get_rope_index).parameters
        own = [base.get_rope_index(**{key: value for key, value in one.items() if key in names})[0] for one in alone]
        positions = torch.cat([positions[None], torch.cat(own, dim=-1)])
    return alone, {**whole, "position_ids": positions, "use_cache": False}


PACKED = ("llava", "internvl", "mistral3", "qwen2_5_vl", "llava_next", "idefics3")


@pytest.mark.parametrize(
    "plan",
    [
        FASTV,
        "fastv(layer={layer}, keep=0.4, query=text)",
        "fastv(layer={layer}, keep=0.5, scope=sample)",
        "fastv(layer={layer}, keep=0.25, effect=mask)",
        "random(site=pre_llm, keep=0.5)",
    ],
)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in tiny.FAMILIES else pytest.mark.full) for name in PACKED]
)
@pytest.mark.since((5, 17), "before, positions of packed rows were read in another way")
def test_each_sample_of_a_packed_row_is_as_if_alone(family, plan):
    model = MODELS[family, "sdpa"]
    alone, whole = packed(family, model)
    with foveate.attach(model, plan_of(family, plan)):
        wanted = torch.cat([model(**one, use_cache=False).logits[0] for one in alone])
        got = model(**whole).logits[0]
    assert float((got - wanted).abs().max()) < LOGITS


@pytest.mark.since((5, 17), "before, positions of packed rows were read in another way")
def test_boundaries_of_sequences_tell_of_packed_rows_too():
    from foveate.engine.layout import packed_samples

    codes = torch.zeros(1, 6, dtype=torch.int8)
    assert packed_samples({"cu_seq_lens_q": torch.tensor([0, 2, 6])}, codes).tolist() == [[0, 0, 1, 1, 1, 1]]
    assert packed_samples({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]])}, codes).tolist() == [[0, 0, 0, 1, 1, 2]]
    assert packed_samples({"position_ids": torch.tensor([[4, 5, 6, 7, 8, 9]])}, codes) is None
    padded = torch.tensor([[-1, -1, 0, 0, 0, 0]], dtype=torch.int8)
    assert packed_samples({"position_ids": torch.tensor([[1, 1, 0, 1, 2, 3]])}, padded) is None


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("llava", {"use_cache": True}, "use_cache=False"),
        ("gemma3", {}, "does not keep samples of Gemma 3 apart"),
    ],
)
def test_packed_rows_that_transformers_mixes_are_refused(family, change, words):
    model = MODELS[family, "sdpa"]
    _, whole = packed(family, model)
    with foveate.attach(model, plan_of(family, FASTV)), pytest.raises(UnsupportedCombination, match=words):
        model(**{**whole, **change})
