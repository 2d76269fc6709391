"""The record: what it holds, what it refuses, and what must hold for every plan."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.budget import Budget
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.shape import DecoderShape, EncoderShape, LinearShape, MediumShape, ModelShape, RowsPer
from foveate.core.site import Site, SiteKind
from foveate.cost.conventions import CONVENTIONS
from foveate.cost.estimate import estimate_cost, grid
from foveate.cost.flops import matmul_flops, vision_flops
from foveate.errors import BudgetError, InputError, PlanError, UnknownName, UnsupportedCombination
from tests.cost.shapes import IMAGE, LLAVA_7B, Ranked, cut, fastv, keep_count

SMALL = ModelShape(
    "any",
    DecoderShape(6, 64, 96, 8, 2, 16, 100, layer_windows=(None, 12, 12, None, 12, None)),
    EncoderShape(2, 32, 48, 4, patch_inputs=48),
    (LinearShape(32, 64),),
)


def test_keys_of_the_record():
    cost = estimate_cost(LLAVA_7B, fastv(2, 0.5), [IMAGE], 64, new_tokens=128)
    record = json.loads(json.dumps(cost.to_json()))
    compared = ["prefill_flops", "llm_prefill_flops", "decode_flops", "kv_bytes", "visual_tokens_per_layer"]
    compared += ["prefill_flops_ratio", "llm_prefill_flops_ratio", "kv_bytes_ratio"]
    for key in compared:
        assert set(record[key]) == {"plain", "plan"}
    assert record["prefill_flops_ratio"]["plain"] == 1.0
    assert record["visual_tokens_per_layer"]["plan"] == [576, 576] + [288] * 30
    assert record["prefill_flops"]["plan"] == record["llm_prefill_flops"]["plan"] + record["encoder_flops"]["plan"]
    assert (record["text_tokens"], record["new_tokens"]) == (64, 128)
    assert record["unit"] == "FLOPs"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_says_what_it_counts(convention):
    cost = estimate_cost(LLAVA_7B, fastv(2, 0.5), [IMAGE], 36, convention=convention)
    assert cost.convention == convention
    assert cost.unit.split(",")[0] in cost.convention_words
    assert 0.5 < cost.prefill_flops.ratio.plan < 0.6
    json.dumps(cost.to_json())


def test_kv_bytes_are_no_matter_of_convention():
    costs = [estimate_cost(LLAVA_7B, fastv(2, "0.1"), [IMAGE], 36, convention=name).kv_bytes for name in CONVENTIONS]
    assert len(set(costs)) == 1


def test_fractions_are_counted_only_where_the_convention_says_so():
    assert estimate_cost(LLAVA_7B, fastv(2, "0.1"), [IMAGE], 36).visual_tokens_per_layer[1][2] == 58
    assert estimate_cost(LLAVA_7B, fastv(2, "0.1"), [IMAGE], 36, convention="fastv").visual_tokens_per_layer[1][2] == 57.6
    counted = estimate_cost(LLAVA_7B, keep_count(2, 100), [IMAGE], 36, convention="fastv")
    assert counted.visual_tokens_per_layer[1][2] == 100


def test_summaries():
    image = MediumShape("image", (1, 24, 24))
    assert estimate_cost(LLAVA_7B, fastv(2, 0.5), [image], 36).summary() == (
        "576 -> 288 visual tokens from layer 2, LLM prefill FLOPs 55 %, KV 56 %"
    )
    two = Plan((cut(0, Budget.of_count(400)), cut(3, Budget.of_ratio(0.5))))
    assert (
        estimate_cost(LLAVA_7B, two, [image], 36)
        .summary()
        .startswith("576 -> 400 visual tokens before the LLM -> 200 from layer 3, LLM prefill")
    )
    assert estimate_cost(LLAVA_7B, Plan(), [image], 36).summary() == (
        "576 visual tokens in every layer, LLM prefill FLOPs 100 %, KV 100 %"
    )
    assert estimate_cost(LLAVA_7B, fastv(2, 0.5), [], 36).summary().startswith("no visual tokens")


def test_separators_stay():
    rows = MediumShape("image", (1, 4, 4), separators=(4, 9, 14, 19))
    tokens = estimate_cost(LLAVA_7B, keep_count(2, 8), [rows], 5).visual_tokens_per_layer
    assert tokens[0][0] == 20
    assert tokens[1][2] == 12


def test_a_batch_multiplies_flops_and_bytes():
    one = estimate_cost(LLAVA_7B, fastv(2, 0.5), [IMAGE], 64, new_tokens=8)
    four = estimate_cost(LLAVA_7B, fastv(2, 0.5), [IMAGE], 64, new_tokens=8, batch=4)
    assert four.visual_tokens_per_layer == one.visual_tokens_per_layer
    for key in ("prefill_flops", "llm_prefill_flops", "decode_flops", "kv_bytes"):
        assert getattr(four, key) == getattr(one, key).times(4)
    assert (four.selection_flops, four.encoder_flops) == (4 * one.selection_flops, one.encoder_flops.times(4))


def test_the_first_new_token_comes_from_the_prefill():
    prefill, first, second = (estimate_cost(LLAVA_7B, Plan(), [IMAGE], 9, new_tokens=count) for count in (0, 1, 2))
    assert prefill.decode_flops == first.decode_flops
    assert first.decode_flops.plain == 0
    assert second.decode_flops.plain > 0
    assert second.kv_bytes.plain - first.kv_bytes.plain == 512 * 1024


def test_the_choice_costs_one_attention_row():
    width, before = 32 * 128, 36 + 576
    for query, rows in (("last", 1), ("text", 36), ("window:16", 16), ("all", before)):
        plan = Plan((Stage(Site.llm_layer(2), Ranked(query), Budget.of_ratio(0.5)),))
        assert estimate_cost(LLAVA_7B, plan, [IMAGE], 36).selection_flops == 2 * rows * width * before
    for free in (Plan(), fastv(2, 1), fastv(0, 0.5)):  # nothing to choose, or no attention to choose by
        assert estimate_cost(LLAVA_7B, free, [IMAGE], 36).selection_flops == 0


def test_hiding_tokens_saves_nothing():
    plan = Plan((cut(2, Budget.of_ratio(0.5), effect=Effect.MASK),))
    cost = estimate_cost(LLAVA_7B, plan, [IMAGE], 36, new_tokens=20)
    assert cost.prefill_flops.plan == cost.prefill_flops.plain
    assert cost.kv_bytes.ratio.plan == 1
    assert cost.selection_flops > 0


def test_rows_of_a_projector():
    medium = MediumShape("image", (1, 2, 2), encoder_tokens=18, encoder_sequences=(9, 9))
    encoder = EncoderShape(0, 32, 48, 4, patch_inputs=48, prefix_tokens=1)
    for rows_per, rows in ((RowsPer.GRID, 4), (RowsPer.PATCH, 16), (RowsPer.ENCODED, 18)):
        shape = ModelShape("any", SMALL.decoder, encoder, (LinearShape(32, 64, rows_per),))
        assert vision_flops(shape, [medium]) == matmul_flops(16, 48, 32) + matmul_flops(rows, 32, 64)


def test_refusals():
    def cost(plan=None, media=(IMAGE,), text=9, **options):
        return estimate_cost(LLAVA_7B, plan or Plan(), list(media), text, **options)

    with pytest.raises(UnknownName, match="Did you mean 'fastv'"):
        cost(convention="fast-v")
    with pytest.raises(PlanError, match="the decoder has 32 layers"):
        cost(fastv(32, 0.5))
    with pytest.raises(BudgetError, match="threshold"):
        cost(Plan((cut(2, Budget(threshold=0.1)),)))
    with pytest.raises(InputError, match="empty prompt"):
        cost(media=(), text=0)
    with pytest.raises(InputError, match="batch=0"):
        cost(batch=0)
    windowed = ModelShape("any", LLAVA_7B.decoder, EncoderShape(2, 32, 48, 4, 48, windowed_layers=(0,)))
    with pytest.raises(InputError, match="encoder_windows"):
        estimate_cost(windowed, Plan(), [IMAGE], 9)
    with pytest.raises(PlanError, match="from 0 to 31"):
        grid(LLAVA_7B, [32], [0.5], [IMAGE], 9)


def test_stages_behind_the_prefill_are_refused():
    class InCache(Ranked):
        sites = (SiteKind.KV_CACHE,)

    plan = Plan((Stage(Site(SiteKind.KV_CACHE), InCache(), Budget.of_ratio(0.5)),))
    with pytest.raises(UnsupportedCombination, match="kv_cache"):
        estimate_cost(LLAVA_7B, plan, [IMAGE], 9)


def test_the_grid_says_what_the_estimate_says():
    for convention in CONVENTIONS:
        table = grid(LLAVA_7B, [0, 2, 31], [0.1, 0.5, 1], [IMAGE, IMAGE], 36, convention)
        for layer, row in zip([0, 2, 31], table, strict=True):
            for keep, ratio in zip([0.1, 0.5, 1], row, strict=True):
                cost = estimate_cost(LLAVA_7B, fastv(layer, keep), [IMAGE, IMAGE], 36, convention=convention)
                assert ratio == cost.llm_prefill_flops.ratio.plan


GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
MEDIA = st.lists(st.builds(lambda grid: MediumShape("video", grid), GRIDS), min_size=1, max_size=3)
KEEPS = st.integers(1, 100).map(lambda percent: Decimal(percent) / 100)
NAMES = st.sampled_from(list(CONVENTIONS))
SCOPES = st.sampled_from(list(Scope))
RATIOS = ("prefill_flops", "llm_prefill_flops", "kv_bytes")


def ratios(layer, keep, media, text, scope, convention, new_tokens=0):
    plan = Plan((cut(layer, Budget.of_ratio(keep), scope=scope),))
    cost = estimate_cost(SMALL, plan, media, text, new_tokens, convention=convention)
    decode = [] if cost.decode_flops is None else [cost.decode_flops.ratio.plan]
    return [getattr(cost, key).ratio.plan for key in RATIOS] + decode


@settings(max_examples=100, deadline=None)
@given(MEDIA, KEEPS, KEEPS, st.integers(0, 5), st.integers(0, 30), SCOPES, NAMES)
def test_keeping_more_never_costs_less(media, one, other, layer, text, scope, convention):
    less, more = (ratios(layer, keep, media, text, scope, convention, 5) for keep in sorted((one, other)))
    assert all(low <= high for low, high in zip(less, more, strict=True))
    assert all(0 < ratio <= 1 for ratio in less + more)


@settings(max_examples=100, deadline=None)
@given(MEDIA, KEEPS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 30), SCOPES, NAMES)
def test_cutting_later_never_costs_less(media, keep, one, other, text, scope, convention):
    early, late = (ratios(layer, keep, media, text, scope, convention, 5) for layer in sorted((one, other)))
    assert all(low <= high * (1 + 1e-12) for low, high in zip(early, late, strict=True))


@settings(max_examples=50, deadline=None)
@given(MEDIA, st.integers(0, 30), st.integers(0, 40), st.integers(1, 3), NAMES)
def test_an_empty_plan_costs_exactly_what_the_model_costs(media, text, new_tokens, batch, convention):
    cost = estimate_cost(SMALL, Plan(), media, text, new_tokens, batch, convention=convention)
    assert all(getattr(cost, key).ratio.plan == 1.0 for key in RATIOS)
    assert cost.decode_flops is None or cost.decode_flops.plan == cost.decode_flops.plain
    assert cost.selection_flops == 0
