"""Plans: order, scopes that only widen, grids, masks alone, and counts from shapes."""

from __future__ import annotations

import pytest

import foveate
from foveate.core.budget import Budget
from foveate.core.layout import Role
from foveate.core.plan import Effect, Plan, Scope, Stage, join_groups
from foveate.core.shape import MediumShape
from foveate.core.site import Site, SiteKind
from foveate.errors import BudgetError, FoveateError, PlanError
from foveate.methods.fastv import FastV
from foveate.methods.pool import Pool
from foveate.methods.random import Random
from foveate.methods.stride_gate import StrideGate
from foveate.methods.uniform import Uniform
from foveate.spec import as_plan, parse

HALF = Budget.of_ratio(0.5)
IMAGE = MediumShape("image", (1, 6, 6))
WIDE = MediumShape("image", (1, 3, 7))
VIDEO = MediumShape("video", (4, 3, 5))
CROPPED = MediumShape("image", (1, 3, 3), crops=((1, 4, 5), (2, 2, 2)))


def uniform(layer: int, budget: Budget = HALF, **options) -> Stage:
    return Stage(Site.llm_layer(layer) if layer else Site.pre_llm(), Uniform(), budget, **options)


def test_stages_stand_in_the_order_in_which_the_model_meets_them():
    Plan((uniform(0), uniform(2), uniform(3)))
    with pytest.raises(PlanError, match=r"llm\(2\) comes too late"):
        Plan((uniform(3), uniform(2)))
    with pytest.raises(PlanError, match="pre_llm comes too late"):
        Plan((uniform(1), uniform(0)))


def test_two_stages_at_one_site_are_refused():
    with pytest.raises(PlanError, match=r"two stages act at llm\(2\)"):
        Plan((uniform(2), uniform(2)))


def test_stages_are_a_tuple_whatever_sequence_was_given():
    plan = Plan([uniform(2)])
    assert plan == Plan((uniform(2),))
    assert hash(plan) == hash(Plan((uniform(2),)))


def test_there_is_one_plan_however_it_was_made():
    for stages in ((), (uniform(2),), (uniform(0), uniform(2))):
        plan = Plan(stages)
        assert plan == as_plan(stages) == parse(str(plan)) and type(as_plan(stages)) is type(plan) is Plan
        assert hash(plan) == hash(parse(repr(plan))) and len({plan, parse(str(plan))}) == 1
    assert Plan() != Plan((uniform(2),))
    assert Plan() != () and Plan() != "none"


def test_methods_make_stages_and_plans_are_joined():
    plan = Random(3).at(site="pre_llm", keep="50%") | FastV(query="text").at(layer=2, keep=144)
    assert repr(plan) == str(plan) == "random(site=pre_llm, keep=0.5, seed=3) | fastv(layer=2, keep=144, query=text)"
    assert plan == parse(str(plan)) and repr(FastV()) == "fastv()" and repr(plan.stages[0]) == str(plan.stages[0])
    assert plan | uniform(3) == Plan((*plan.stages, uniform(3)))
    assert Random().at(site="pre_llm", keep=HALF) | foveate.Staged(layers=(4, 6), keep=(HALF, HALF)) == parse(
        "random(site=pre_llm, keep=0.5) | staged(layers=[4, 6], keep=[0.5, 0.5])"
    )
    assert (foveate.Staged(layers=(4,), keep=(HALF,)) | uniform(6)) == parse(
        "fastv(layer=4, keep=0.5) | uniform(layer=6, keep=0.5)"
    )
    assert Pool().at(layer=2).budget is None
    with pytest.raises(TypeError):
        plan | "uniform(layer=3, keep=0.5)"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"layer": 2}, "fastv needs keep"),
        ({"layer": 2, "keep": 1}, "keep=1 is ambiguous"),
        ({"layer": 2, "keep": 1.5}, "a ratio is at most 1"),
        ({"layer": 0, "keep": 0.5}, "layer=0: no decoder layer has run yet"),
        ({"keep": 0.5}, "fastv needs a place"),
        ({"layer": 2, "keep": 0.5, "scope": "frames"}, "scope=frames is not known"),
        ({"layer": 2, "keep": 0.5, "site": "vit"}, "site=vit is not known"),
        ({"layer": 2, "keep": 0.5, "role": "output"}, "fastv does not touch output tokens"),
        ({"layer": 2, "keep": 0.5, "effect": "hide"}, "effect=hide is not known"),
    ],
)
def test_a_stage_that_cannot_be_made_is_refused_in_one_line(words, told):
    with pytest.raises(FoveateError, match=told) as refused:
        FastV().at(**words)
    assert "\n" not in str(refused.value)


def test_a_number_that_no_text_can_hold_is_refused():
    gate = StrideGate(first=10**18 - 1, protect=(10**18 - 1,))
    assert parse(str(gate.at(layer=2, keep=0.5))).stages[0].method == gate
    for beyond in (StrideGate(first=10**18), StrideGate(protect=(3, 10**18))):
        with pytest.raises(PlanError, match="at most 18 digits"):
            beyond.at(layer=2, keep=0.5)


@pytest.mark.parametrize("first", Scope)
@pytest.mark.parametrize("second", Scope)
def test_scopes_only_widen(first, second):
    order = [Scope.CROP, Scope.FRAME, Scope.MEDIUM, Scope.SAMPLE]
    stages = (uniform(1, scope=first), uniform(2, scope=second))
    if order.index(second) >= order.index(first):
        Plan(stages)
    else:
        with pytest.raises(PlanError, match="scopes may only widen"):
            Plan(stages)


def test_a_method_that_needs_the_grid_stands_first():
    Plan((Stage(Site.pre_llm(), Pool()), uniform(2)))
    with pytest.raises(PlanError, match="pool needs the whole grid"):
        Plan((uniform(0), Stage(Site.llm_layer(2), Pool())))


def test_a_method_that_needs_the_grid_has_no_grid_in_a_sample():
    with pytest.raises(PlanError, match="scope=sample has no grid"):
        Stage(Site.pre_llm(), Pool(), scope=Scope.SAMPLE)


def test_a_merge_cannot_be_a_mask():
    with pytest.raises(PlanError, match="effect=mask can only hide"):
        Stage(Site.llm_layer(2), Pool(), effect=Effect.MASK)


def test_a_mask_works_alone():
    mask = uniform(2, effect=Effect.MASK)
    assert not Plan((mask,)).drops
    with pytest.raises(PlanError, match="effect=mask works alone"):
        Plan((mask, uniform(3)))


def test_a_method_acts_only_at_its_sites():
    with pytest.raises(PlanError, match=r"fastv cannot act at site pre_llm; it acts at: llm"):
        Stage(Site.pre_llm(), FastV(), HALF)
    with pytest.raises(PlanError, match="random cannot act at site kv_cache"):
        Stage(Site(SiteKind.KV_CACHE), Random(), HALF)


def test_a_method_touches_only_its_roles():
    with pytest.raises(PlanError, match="uniform does not touch instruct tokens"):
        uniform(2, role=Role.INSTRUCT)


def test_a_budget_is_given_exactly_when_the_method_fixes_no_count():
    with pytest.raises(BudgetError, match=r"uniform needs keep, e\.g\. keep=0\.5"):
        Stage(Site.pre_llm(), Uniform())
    with pytest.raises(BudgetError, match="pool fixes its own count: leave keep out"):
        Stage(Site.pre_llm(), Pool(), HALF)


def test_budgets_whose_count_no_shape_tells_are_refused():
    with pytest.raises(BudgetError, match="cannot keep by threshold"):
        uniform(2, Budget(threshold=0.1))


def kept(stage, media):
    groups = [[h * w for _, h, w in shape.pieces] for shape in media]
    return stage.kept_groups(join_groups(groups, media, stage.scope), media)


def test_each_medium_keeps_its_own_share():
    media = [IMAGE, WIDE, VIDEO]
    assert kept(uniform(2), media) == [[18], [11], [30]]
    assert kept(uniform(2, Budget.of_count(25)), media) == [[25], [21], [25]]


def test_each_frame_keeps_its_own_share():
    frames = uniform(2, scope=Scope.FRAME)
    assert kept(frames, [IMAGE, VIDEO]) == [[18], [8] * 4]  # 7.5 of 15 per frame, half up
    assert frames.kept_groups([[8] * 4], [VIDEO]) == [[4] * 4]
    assert kept(uniform(2, Budget.of_count(2), scope=Scope.FRAME), [VIDEO]) == [[2] * 4]


def test_each_crop_keeps_its_own_share_and_a_frame_scope_leaves_images_whole():
    assert CROPPED.pieces == ((1, 3, 3), (1, 4, 5), (1, 2, 2), (1, 2, 2))
    assert kept(uniform(2, scope=Scope.CROP), [CROPPED, VIDEO]) == [[5, 10, 2, 2], [8] * 4]
    assert kept(uniform(2, scope=Scope.FRAME), [CROPPED, VIDEO]) == [[19], [8] * 4]
    assert kept(uniform(2), [CROPPED]) == [[19]]
    plan = Plan((uniform(1, scope=Scope.CROP), uniform(2, scope=Scope.MEDIUM)))
    assert plan.grid_tokens_per_layer([CROPPED], 3) == [37, 19, 10]


def test_a_sample_has_one_joint_count():
    sample = uniform(2, scope=Scope.SAMPLE)
    assert kept(sample, [IMAGE, WIDE]) == [[29]]  # 28.5, half up; each on its own would be 18 + 11
    assert kept(sample, [CROPPED, WIDE]) == [[29]]


def test_pooling_counts_cells_of_the_grid_frame_by_frame():
    media = [IMAGE, WIDE, VIDEO, CROPPED]
    assert kept(Stage(Site.pre_llm(), Pool(2)), media) == [[9], [8], [4 * 6], [4 + 6 + 1 + 1]]
    assert kept(Stage(Site.pre_llm(), Pool(2), scope=Scope.FRAME), media) == [[9], [8], [6] * 4, [4 + 6 + 1 + 1]]
    assert kept(Stage(Site.pre_llm(), Pool(2), scope=Scope.CROP), media) == [[9], [8], [6] * 4, [4, 6, 1, 1]]


def test_tokens_per_layer_follow_the_stages():
    plan = Plan((uniform(0), uniform(2, scope=Scope.SAMPLE), uniform(3, Budget.of_count(5), scope=Scope.SAMPLE)))
    assert plan.grid_tokens_per_layer([IMAGE, WIDE], 5) == [29, 29, 15, 5, 5]
    assert plan.grid_tokens_per_layer([], 3) == [0, 0, 0]
    assert Plan().grid_tokens_per_layer([IMAGE], 2) == [36, 36]


def test_a_mask_shortens_no_layer():
    assert Plan((uniform(1, effect=Effect.MASK),)).grid_tokens_per_layer([IMAGE], 3) == [36, 36, 36]
