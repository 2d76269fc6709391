"""What a spec says: stages, recipes, and the budgets, ranges, lists and switches in them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from foveate.core.budget import Budget, Rounding
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import Site
from foveate.errors import SpecError
from foveate.methods.fastv import FastV
from foveate.methods.pool import Pool
from foveate.methods.random import Random
from foveate.methods.uniform import Uniform
from foveate.spec import as_plan, from_json, parse, to_json
from foveate.spec.grammar import Bare, parse_calls
from foveate.spec.words import read_budget

HALF = Budget.of_ratio(0.5)


def test_a_stage():
    assert parse("fastv(layer=2, keep=0.5)").stages == (Stage(Site.llm_layer(2), FastV(), HALF),)


def test_stages_are_joined():
    assert parse("random(site=pre_llm, keep=144, seed=3) | uniform(layer=4, keep=50%, scope=sample)").stages == (
        Stage(Site.pre_llm(), Random(3), Budget.of_count(144)),
        Stage(Site.llm_layer(4), Uniform(), HALF, scope=Scope.SAMPLE),
    )


def test_every_reserved_word():
    plan = parse("fastv(site=llm, layer=2, keep=0.1, rounding=floor, scope=frame, role=visual, effect=mask)")
    budget = Budget.of_ratio(0.1, Rounding.FLOOR)
    assert plan.stages == (Stage(Site.llm_layer(2), FastV(), budget, Scope.FRAME, effect=Effect.MASK),)


def test_options_of_methods():
    plan = parse("fastv(layer=2, keep=0.5, query=window:16, rope=off, topk='window:4')")
    assert plan.stages[0].method == FastV("window:16", False, "window:4")
    assert parse("pool(site=pre_llm, size=3)").stages == (Stage(Site.pre_llm(), Pool(3)),)


@pytest.mark.parametrize("word", ["on", "true", "True", "ON"])
def test_switches(word):
    assert parse(f"fastv(layer=2, keep=0.5, rope={word})") == parse("fastv(layer=2, keep=0.5)")


@pytest.mark.parametrize("text", ["none", " none "])
def test_none_is_the_plain_model(text):
    assert parse(text) == Plan()
    assert str(Plan()) == "none"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.5", Budget.of_ratio("0.5")),
        (".5", Budget.of_ratio("0.5")),
        ("50%", Budget.of_ratio("0.5")),
        ("12.5%", Budget.of_ratio("0.125")),
        ("100%", Budget.of_ratio(1)),
        ("1.0", Budget.of_ratio(1)),
        ("1e-2", Budget.of_ratio("0.01")),
        ("144", Budget.of_count(144)),
        ("144tok", Budget.of_count(144)),
        ("1tok", Budget.of_count(1)),
    ],
)
def test_budgets(text, budget):
    assert read_budget(Bare(text)) == budget


def test_percentages_are_exact_decimals():
    assert read_budget(Bare("33.333333333333333333%")).ratio == Decimal("0.33333333333333333333")


@pytest.mark.parametrize("text", ["a(x=1)", " a ( x = 1 ) ", "a(x=1,)", "a\n(x\n=1)"])
def test_blanks_and_a_trailing_comma_do_not_matter(text):
    assert [(call.name, call.words) for call in parse_calls(text)] == [("a", {"x": Bare("1")})]


def test_values():
    words = parse_calls("""a(range=5..8, list=[1, 2,], mixed=[5..7, 12], quoted="a, (b) | 'c'", other='say "x"', none=[])""")[
        0
    ].words
    assert words == {
        "range": (Bare("5"), Bare("6"), Bare("7"), Bare("8")),
        "list": (Bare("1"), Bare("2")),
        "mixed": (Bare("5"), Bare("6"), Bare("7"), Bare("12")),
        "quoted": "a, (b) | 'c'",
        "other": 'say "x"',
        "none": (),
    }


def test_a_recipe_expands_and_its_stages_are_what_is_stored():
    plan = parse("staged(method=uniform, layers=[8, 16, 24], keep=[50%, 0.5, 144])")
    assert str(plan) == "uniform(layer=8, keep=0.5) | uniform(layer=16, keep=0.5) | uniform(layer=24, keep=144)"
    assert parse(str(plan)) == plan


def test_the_rounding_of_the_authors_programs_has_a_name():
    half_even = Budget.of_ratio(0.5, Rounding.HALF_EVEN)
    assert parse("fastv(layer=2, keep=0.5, rounding=half_even)").stages == (Stage(Site.llm_layer(2), FastV(), half_even),)
    staged = parse("staged(layers=[2, 8], keep=[0.5, 144], rounding=half_even)")
    assert [stage.budget for stage in staged.stages] == [half_even, Budget.of_count(144)]
    assert parse(str(staged)) == staged and from_json(to_json(staged)) == staged
    assert [stage.kept_of(49, None) for stage in staged.stages] == [24, 49]


def test_a_recipe_stands_among_stages():
    plan = parse("uniform(site=pre_llm, keep=0.5) | staged(layers=2..3, keep=[0.5, 0.25])")
    assert [str(stage.site) for stage in plan.stages] == ["pre_llm", "llm(2)", "llm(3)"]
    assert [stage.method for stage in plan.stages[1:]] == [FastV(), FastV()]


def test_the_canonical_text_leaves_defaults_out():
    text = "fastv( keep = 50.0% , query = last, rope=on, layer=2, scope=medium, effect=drop, role=visual, rounding=half_up )"
    assert str(parse(text)) == "fastv(layer=2, keep=0.5)"


def test_everything_that_is_a_plan_is_accepted():
    plan = parse("fastv(layer=2, keep=0.5)")
    for same in (str(plan), plan, Plan(plan.stages), plan.stages[0], plan.stages, list(plan.stages), iter(plan.stages)):
        assert as_plan(same) == plan
        assert isinstance(as_plan(same), Plan)


@pytest.mark.parametrize("wrong", [None, 3, ["fastv(layer=2, keep=0.5)"], [None]])
def test_what_is_no_plan_is_refused(wrong):
    with pytest.raises(SpecError, match="a plan is a spec string, a Plan, a recipe or Stage objects, not"):
        as_plan(wrong)
