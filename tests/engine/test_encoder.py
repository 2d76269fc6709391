"""Stages inside the vision encoder: against a full-length encoder with masked keys and substituted states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate.engine import attention_rows, compat, observe
from foveate.engine.attachment import Attachment
from foveate.errors import PlanError, UnsupportedCombination
from foveate.spec import parse
from tests import examples, tiny
from tests.conftest import TRANSFORMERS
from tests.oracles.dense_reference import dense_reference
from tests.oracles.row_encoder import CONFIGS, Case, alive_columns, dense_encoder, merges_in_decoder
from tests.spies import settled_state, state_of

LOGITS = 2e-4  # as the oracles of decoder stages
SCORES = 1e-5

# Counts are of patches.
COUNTS = (
    "illava_v1(site=vision, layer=1, keep={30}) | illava_v1(site=vision, layer=2, keep={21}) "
    "| illava_v1(site=vision, layer=3, keep={14})"
)
PLANS = (
    "illava_v1(site=vision, layer=3, keep=0.5)",
    COUNTS,
    "partition(site=vision, layer=1, keep=0.6) | partition(site=vision, layer=3, keep=0.5)",
    "tome(site=vision, layer=0, keep=0.3)",
    "tome(site=vision, layer=1, keep=0.4, proportional=on) | tome(site=vision, layer=3, keep=0.5, proportional=on)",
    "tome(site=vision, layer=1, keep=0.6, proportional=on) | partition(site=vision, layer=3, keep=0.5)",
    "random(site=vision, layer=2, keep=0.5)",
    "uniform(site=vision, layer=0, keep=0.5)",
    "illava_v1(site=vision, layer=2, keep=0.6) | illava_v1(layer=2, keep=0.5)",
    "partition(site=vision, layer=2, keep=0.6) | random(site=pre_llm, keep=0.7) | fastv(layer=2, keep=0.5)",
    "random(site=vision, layer=1, keep=0.6) | scope(site=pre_llm, keep=0.7) | v2drop(layer=2, keep=0.5)",
)


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str], Case]:
    return {}


def case_of(cases: dict[tuple[str, str], Case], name: str, backend: str) -> Case:
    if (name, backend) not in cases:
        cases[name, backend] = Case(name, backend)
    return cases[name, backend]


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("plan", [*PLANS, *examples.encoder_plans(layer=1)])
def test_b_g_a_shorter_encoder_equals_a_masked_one(cases, plan, name, backend):
    case = case_of(cases, name, backend)
    with torch.no_grad(), foveate.attach(case.model, case.plan(plan)) as attachment:
        pruned = case.model(**case.inputs).logits
        trace = attachment.trace
        answer = tiny.generate(case.model, case.inputs)
    texts = [text for text, _ in trace.media[0].stages if "site=vision" in text]
    assert len(trace.media[0].stages) == plan.count("(")
    alive, merged = alive_columns(case, trace), merges_in_decoder(case, trace)
    assert not alive[0].all()
    with torch.no_grad(), dense_encoder(case, trace, texts), dense_reference(case.model, alive, merged):
        reference = case.model(**case.inputs).logits
        dense = tiny.generate(case.model, case.inputs, use_cache=False)
    if name == "paligemma" and TRANSFORMERS < (5, 19):
        dense = None  # plain transformers answers otherwise without a cache than with one
    everywhere = case.inputs["attention_mask"].bool()
    for columns in alive.values():
        everywhere = everywhere & columns
    assert not pruned.isnan().any()
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert dense is None or tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_keeping_everything_is_bit_identical(cases, name, shortcut):
    case = case_of(cases, name, "sdpa")
    plan = parse("random(site=vision, layer=1, keep=100%) | tome(site=vision, layer=2, keep=100%, proportional=on)")
    plain = tiny.generate(case.model, case.inputs)
    with Attachment(case.model, plan, shortcut=shortcut) as attachment:
        kept = tiny.generate(case.model, case.inputs)
        for entry in attachment.trace.media:
            assert len(entry.kept_index) == entry.medium.shape.grid_tokens
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.pairs
@pytest.mark.parametrize("name", ["clip", "siglip", "gemma3", "idefics3", "aya_vision", "cohere2_vision", "ovis2"])
@pytest.mark.parametrize("plan", PLANS)
def test_c_a_row_in_company_equals_the_row_alone(cases, plan, name):
    case = case_of(cases, name, "sdpa")
    with foveate.attach(case.model, case.plan(plan)):
        together = tiny.generate(case.model, case.inputs)
        for number, row in enumerate(case.rows):
            alone = tiny.generate(case.model, case.maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("plan", PLANS[:2])
def test_d_a_cached_answer_equals_an_uncached_one(cases, plan):
    case = case_of(cases, "clip", "sdpa")
    with foveate.attach(case.model, case.plan(plan)):
        cached, uncached = (tiny.generate(case.model, case.inputs, use_cache=use) for use in (True, False))
    assert tiny.greatest_difference(cached, uncached) < LOGITS


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
@pytest.mark.parametrize("beams", [2, 3])
def test_beams_share_one_encoding(cases, beams):
    case = case_of(cases, "clip", "sdpa")
    with foveate.attach(case.model, PLANS[0]) as attachment:
        cached = case.model.generate(**case.inputs, num_beams=beams, max_new_tokens=5, do_sample=False)
        trace = attachment.trace
        again = case.model.generate(**case.inputs, num_beams=beams, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, again)
    assert all(len(entry.kept_index) == 18 for entry in trace.media)


def test_f_detaching_leaves_no_trace_and_the_same_answers(cases):
    case = case_of(cases, "clip", "sdpa")
    plain = tiny.generate(case.model, case.inputs)
    before = settled_state(case.model, case.inputs)
    with foveate.attach(case.model, case.plan(COUNTS)):
        tiny.generate(case.model, case.inputs)
    assert state_of(case.model) == before
    after = tiny.generate(case.model, case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))


def test_the_encoder_really_gets_shorter_and_gives_back_its_full_length(cases):
    case = case_of(cases, "clip", "sdpa")
    tower = case.model.get_submodule(case.path.towers[0])
    seen: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1])) for layer in tower.encoder.layers
    ]
    with torch.no_grad(), foveate.attach(case.model, case.plan(COUNTS)):
        case.model(**case.inputs)
        features = case.model.get_image_features(case.inputs["pixel_values"]).pooler_output
    for handle in handles:
        handle.remove()
    assert seen[:5] == [37, 31, 22, 15, 15]
    assert seen[5:] == [37] * 5, "outside of a call of the model nobody wants shorter features"
    assert not any(part.isnan().any() for part in features)


def test_features_that_a_call_returns_carry_no_mark(cases):
    case = case_of(cases, "clip", "sdpa")
    with torch.no_grad(), foveate.attach(case.model, PLANS[0]):
        output = case.model(**case.inputs)
    features = output.image_outputs.pooler_output if compat.CACHE == "cache" else output.image_hidden_states
    features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features
    assert not features.isnan().any()
    assert int((features == 0).all(-1).sum()) == 3 * 18


def test_column_means_equal_eager_attention(cases):
    case = case_of(cases, "clip", "eager")
    tower = case.model.get_submodule(case.path.towers[0])
    pixels = case.inputs["pixel_values"]
    with torch.no_grad():
        eager = tower(pixels, output_attentions=True).attentions[1]
    found: list[Tensor] = []
    attention = tower.encoder.layers[1].self_attn
    owner = nn.Identity()
    observe.enable(owner)

    def measure(query, key, mask, scaling, softcap):
        found.append(attention_rows.column_means(query, key, mask, scaling))

    handle = attention.register_forward_pre_hook(lambda module, args: observe.arm(module, measure))
    with torch.no_grad():
        tower(pixels)
    handle.remove()
    observe.disable(owner)
    torch.testing.assert_close(found[0], eager.mean((1, 2)), atol=SCORES, rtol=0)


def test_a_text_only_prompt_is_an_exact_no_op(cases):
    case = case_of(cases, "clip", "sdpa")
    inputs = case.maker.inputs([tiny.Row([case.maker.text(9)])])
    plain = tiny.generate(case.model, inputs)
    with foveate.attach(case.model, PLANS[0]):
        same = tiny.generate(case.model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("illava_v1(site=vision, layer=4, keep=0.5)", "changes nothing"),
        ("illava_v1(site=vision, layer=0, keep=0.5)", "first layer that works is 1"),
        ("random(site=vision, layer=1, keep=0.5, scope=sample)", "leave scope out"),
        ("random(site=vision, layer=1, keep=0.5, effect=mask)", "drop or merge"),
        ("tome(layer=2, keep=0.5, proportional=on)", "leave proportional out"),
        ("tome(site=pre_llm, keep=0.5, proportional=on)", "leave proportional out"),
    ],
)
def test_plans_without_meaning_are_refused(cases, plan, said):
    case = case_of(cases, "clip", "sdpa")
    with pytest.raises((PlanError, UnsupportedCombination), match=said):
        foveate.attach(case.model, case.plan(plan))


def test_a_kernel_that_takes_no_bias_is_refused(cases, monkeypatch):
    case = case_of(cases, "clip", "sdpa")
    tower = case.model.model.vision_tower
    with torch.no_grad(), foveate.attach(case.model, "tome(site=vision, layer=0, keep=0.5, proportional=on)"):
        monkeypatch.setattr(tower.config, "_attn_implementation_internal", "flash_attention_2")
        with pytest.raises(UnsupportedCombination, match="load the vision encoder with sdpa or eager"):
            case.model(**case.inputs)
