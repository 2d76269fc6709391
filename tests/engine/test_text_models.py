"""Plain language models: gates and attention views on every model type, and everything about pictures refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

import foveate
from foveate import families
from foveate.core.attention import Raters
from foveate.engine.cache_kinds import lasting_bytes
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import InputError, UnsupportedCombination
from tests import tiny
from tests.engine.test_attention_study import TOKENS as STUDIED
from tests.engine.test_attention_study import check_against_eager, eager_maps
from tests.engine.test_gate import LOGITS, TOKENS, answers, rejected_columns
from tests.marks import one_and_more
from tests.oracles.gated_reference import gated_reference
from tests.spies import settled_state, state_of

FAMILY = families.get("text")
TYPES = [model_type for model_type in FAMILY.model_types if model_type in CONFIG_MAPPING]
PLANS = [
    "random_gate(layer=2, keep=0.5, recent=0)",
    "stride_gate(layer=1, keep=0.3, recent=0)",
    "random_gate(layer=3, keep=0.4, recent=3, first=2)",
]

every_type = pytest.mark.parametrize("model_type", one_and_more(TYPES, 3))


@pytest.fixture(scope="module")
def text_model():
    """`text_model(type, backend)` builds each model once."""
    known: dict[tuple[str, str], Any] = {}

    def get(model_type: str, backend: str = "sdpa") -> Any:
        if model_type == "gemma2":  # transformers has no other for it
            backend = "eager"
        if (model_type, backend) not in known:
            model = known[model_type, backend] = tiny.tiny_model("text", backend, config=FAMILY.tiny_config(model_type))
            settled_state(model, prompt((4,)))
        return known[model_type, backend]

    return get


def prompt(lengths: tuple[int, ...] = (9, 14, 5)) -> dict[str, Tensor]:
    maker = tiny.Maker("text")
    return maker.inputs([tiny.Row([maker.text(length)]) for length in lengths])


def row_of(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    real = inputs["attention_mask"][row].bool()
    return {name: value[row : row + 1, real] for name, value in inputs.items()}


@every_type
@pytest.mark.parametrize("plan", one_and_more(PLANS))
def test_decoding_equals_a_masked_plain_model_that_reads_the_whole_answer(text_model, model_type, plan):
    model, inputs = text_model(model_type), prompt()
    with foveate.attach(model, plan) as attachment:
        answer = answers(model, inputs)
        trace = attachment.trace
    kept = torch.stack(trace.answer_kept)
    assert kept.shape == (3, TOKENS - 1) and kept.any() and not kept.all()
    width = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, TOKENS - 1, dtype=torch.long)], dim=1)
    layer, recent = int(plan.partition("layer=")[2][0]), 3 if "recent=3" in plan else 1
    with torch.no_grad(), gated_reference(model, layer, rejected_columns(trace, width), recent):
        logits = model(input_ids=answer.sequences[:, :-1], attention_mask=mask, use_cache=False).logits
    for step in range(TOKENS):
        torch.testing.assert_close(answer.logits[step], logits[:, width - 1 + step], atol=LOGITS, rtol=0)


@every_type
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_rows_alone_static_caches_and_answers_without_a_cache_are_the_same(text_model, model_type, backend):
    model, inputs = text_model(model_type, backend), prompt()
    plain = answers(model, inputs)
    answers(model, inputs, cache_implementation="static")  # leaves attributes of transformers' own
    before = state_of(model)
    with foveate.attach(model, PLANS[0]) as attachment:
        together = answers(model, inputs)
        assert lasting_bytes(cache_in(together)) < lasting_bytes(cache_in(plain))
        kept = attachment.trace.answer_kept
        for options in ({"use_cache": False}, {"cache_implementation": "static"}):
            assert tiny.greatest_difference(together, answers(model, inputs, **options)) < LOGITS
            assert all(torch.equal(a, b) for a, b in zip(kept, attachment.trace.answer_kept, strict=True))
        for row in range(3):
            alone = answers(model, row_of(inputs, row))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][row], logits[0], atol=LOGITS, rtol=0)
    assert tiny.greatest_difference(plain, together) > 100 * LOGITS
    assert tiny.greatest_difference(plain, answers(model, inputs)) == 0
    assert state_of(model) == before


@every_type
def test_storing_everything_changes_nothing(text_model, model_type):
    model, inputs = text_model(model_type), prompt()
    plain = answers(model, inputs)
    with foveate.attach(model, "random_gate(layer=2, keep=100%)"):
        assert tiny.greatest_difference(plain, answers(model, inputs)) < 1e-5


@every_type
def test_states_and_logits_stand_in_their_columns(text_model, model_type):
    """Base and decoder are one module here: what the gate left out of the layers is put back before anybody looks."""
    model, inputs = text_model(model_type), prompt()
    with foveate.attach(model, PLANS[0]) as attachment:
        answer = answers(model, inputs, use_cache=False, output_hidden_states=True)
        width = inputs["input_ids"].shape[1]
        rejected = rejected_columns(attachment.trace, width)
        for step, states in enumerate(answer.hidden_states):
            assert all(state.shape[1] == width + step for state in states)
        last = answer.hidden_states[-1][-1]
        # Every rejected token but the last has no states in the layers behind the gate, every other one has.
        real = torch.nn.functional.pad(inputs["attention_mask"], (0, TOKENS - 1), value=1).bool()
        assert not last[:, :-1][rejected[:, :-1]].any() and last[real & ~rejected].any(-1).all()
        with attachment.conversation(prompt_length=width), torch.no_grad():
            ids, mask = answer.sequences[:, :-1], torch.nn.functional.pad(inputs["attention_mask"], (0, TOKENS - 1), value=1)
            read = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert read.shape[1] == width + TOKENS - 1
    torch.testing.assert_close(read[:, -1], answer.logits[-1], atol=LOGITS, rtol=0)


@every_type
def test_beams_and_a_second_turn(text_model, model_type):
    model, inputs = text_model(model_type), prompt((9, 9))
    more = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with foveate.attach(model, PLANS[0]):
        assert answers(model, inputs, num_beams=2).sequences.shape == (2, 9 + TOKENS)
        first = answers(model, inputs)
        ids = torch.cat([first.sequences, more], dim=1)
        second = answers(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: cache_in(first)})
        for row in range(2):
            alone = answers(model, row_of(inputs, row))
            own = {"input_ids": ids[row : row + 1], "attention_mask": torch.ones_like(ids[:1]), CACHE: cache_in(alone)}
            for step, logits in enumerate(answers(model, own).logits):
                torch.testing.assert_close(second.logits[step][row], logits[0], atol=LOGITS, rtol=0)


@every_type
def test_the_attention_study_equals_eager_attention_maps(text_model, model_type):
    model, inputs = text_model(model_type), prompt()
    study = foveate.attention(model, inputs, max_new_tokens=STUDIED)
    check_against_eager(study, eager_maps(model, inputs), inputs, study.layers)
    shares = study.shares(Raters.OUTPUT)  # [L, B, kinds]: system, visual, instruction, output
    assert not shares[..., :2].any() and torch.allclose(shares.sum(-1), torch.ones(shares.shape[:-1]))


@pytest.mark.parametrize(
    "plan", ["fastv(layer=2, keep=0.5)", "random(site=pre_llm, keep=0.5)", "random(site=vision, layer=1, keep=0.5)"]
)
def test_stages_on_pictures_are_refused_in_one_line(text_model, plan):
    model = text_model("llama")
    before = state_of(model)
    with pytest.raises(UnsupportedCombination, match="a plain language model") as caught:
        foveate.attach(model, plan)
    assert "\n" not in str(caught.value)
    assert state_of(model) == before


def test_pictures_are_refused_in_one_line(text_model):
    model = text_model("llama")
    with foveate.attach(model, PLANS[0]), pytest.raises(InputError, match="takes no pictures"):
        foveate.estimate(model.config, PLANS[0], images=[(10, 10)])
    with pytest.raises(UnsupportedCombination, match="takes no video"):
        foveate.estimate(model.config, PLANS[0], images=[(10, 10)], frames=2)


def test_a_smollm3_layer_without_positions_is_known():
    config = FAMILY.tiny_config("smollm3")
    assert [FAMILY.rotates(config, layer) for layer in range(5)] == [True, True, True, False, True]
