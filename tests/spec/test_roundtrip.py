"""parse(str(plan)) == plan and from_json(to_json(plan)) == plan, for plans of every method, option, budget and scope."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import methods, recipes
from foveate.core.budget import Budget, Rounding
from foveate.core.layout import Role
from foveate.core.method import Method, StepMethod, TokenMethod
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import Site, SiteKind
from foveate.core.text import option_words
from foveate.errors import FoveateError, SpecError
from foveate.spec import from_json, parse, to_json
from foveate.spec.grammar import parse_calls
from foveate.spec.words import read_fields
from tests import tiny
from tests.examples import counts_by_itself, filled, unused_options
from tests.options import with_options
from tests.trained import random_predictors

RATIOS = (
    st.decimals(min_value="0.001", max_value=1, places=3)
    | st.floats(1e-9, 1).map(lambda number: Decimal(str(number))).filter(lambda ratio: ratio.as_tuple().exponent >= -28)
    | st.integers(1, 10**28).map(lambda digits: Decimal(digits).scaleb(-28))
)
BUDGETS = (
    st.builds(Budget, ratio=RATIOS, rounding=st.sampled_from(Rounding), at_least=st.integers(1, 10**9))
    | st.builds(Budget, count=st.integers(1, 10**6), rounding=st.sampled_from(Rounding))
    | st.builds(Budget, energy=st.floats(0, 1, exclude_min=True, exclude_max=True), at_least=st.integers(1, 10**9))
)


TOKENS = [methods.get(name) for name in methods.names() if issubclass(methods.get(name), TokenMethod)]
ON_PICTURES = [cls for cls in TOKENS if Role.VISUAL in cls.roles]
ON_TEXT = [cls for cls in TOKENS if Role.VISUAL not in cls.roles]
GATES = [methods.get(name) for name in methods.names() if issubclass(methods.get(name), StepMethod)]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Up to four stages on pictures, one on the instruction and a gate, of any methods with any options."""
    layers = sorted(draw(st.sets(st.integers(0, 40), max_size=4)))
    scopes = sorted(draw(st.lists(st.sampled_from(Scope), min_size=4, max_size=4)), key=_width)
    stages: list[Stage] = []
    for layer, scope in zip(layers, scopes, strict=False):
        method = draw(st.sampled_from(ON_PICTURES).flatmap(with_options))
        inside = draw(st.booleans()) and SiteKind.VISION_LAYER in method.sites
        site = Site(SiteKind.VISION_LAYER, layer) if inside else Site.llm_layer(layer) if layer else Site.pre_llm()
        effect = draw(st.sampled_from(Effect)) if len(layers) == 1 else Effect.DROP
        budget = None if counts_by_itself(method) else draw(BUDGETS)
        _join(stages, site, method, budget, scope, effect=effect)
    if ON_TEXT and draw(st.booleans()):
        method = draw(st.sampled_from(ON_TEXT).flatmap(with_options))
        after = max([stage.site.decoder_layer or 0 for stage in stages], default=0)
        _join(stages, Site.llm_layer(max(1, after)), method, Budget(threshold=draw(st.floats(0.01, 0.99))))
    if draw(st.booleans()):
        gate = draw(st.sampled_from(GATES).flatmap(with_options))
        budget = Budget(ratio=draw(RATIOS), rounding=draw(st.sampled_from(Rounding)))
        _join(stages, Site(SiteKind.DECODE, draw(st.integers(0, 40))), gate, None if counts_by_itself(gate) else budget)
    return Plan(tuple(stages))


def _join(stages: list[Stage], *stage: Any, **more: Any) -> None:
    """One more stage, where a plan can have it."""
    try:
        Plan((*stages, Stage(*stage, **more)))
    except FoveateError:  # a place, order or effect that the method does not serve
        return
    stages.append(Stage(*stage, **more))


def _width(scope: Scope) -> int:
    return [Scope.CROP, Scope.FRAME, Scope.MEDIUM, Scope.SAMPLE].index(scope)


@given(plans())
@settings(max_examples=100)
def test_the_text_of_a_plan_reads_back_as_the_plan(plan):
    assert parse(str(plan)) == plan
    assert str(parse(str(plan))) == str(plan)


@given(plans())
@settings(max_examples=100)
def test_the_json_of_a_plan_reads_back_as_the_plan(plan):
    stored = json.loads(json.dumps(to_json(plan)))
    assert stored == to_json(plan)
    assert from_json(stored) == plan
    assert to_json(from_json(stored)) == stored


@pytest.mark.parametrize("name", methods.names())
@settings(max_examples=40)
@given(data=st.data())
def test_any_options_of_a_method_read_back(name, data):
    method = data.draw(with_options(methods.get(name)))
    (call,) = parse_calls(f"{name}({', '.join(option_words(method))})")
    assert read_fields(type(method), call.words, name) == method
    assert hash(method) == hash(read_fields(type(method), call.words, name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    return random_predictors(tmp_path_factory.mktemp("trained"), tiny.tiny_model("llava"), layer=2, instruct_keep=0.5)[0]


@pytest.mark.parametrize("name", recipes.names())
def test_the_examples_of_a_recipe_use_every_option_and_read_back(name, trained):
    assert not unused_options(recipes.get(name)), f"add texts to examples() of {recipes.get(name).__name__} that use them"
    for text in recipes.get(name).examples():
        plan = parse(filled(text, "llava", trained))
        assert plan.stages
        assert parse(str(plan)) == plan == from_json(json.loads(json.dumps(to_json(plan))))


@pytest.mark.full
@given(
    st.lists(
        st.tuples(st.integers(1, 40), BUDGETS.filter(lambda b: b.rounding is Rounding.HALF_UP and b.at_least == 1)),
        min_size=1,
        max_size=5,
    )
)
def test_recipes_read_back_as_their_stages(pairs):
    by_layer = dict(pairs)
    layers = sorted(by_layer)
    keep = ", ".join(str(by_layer[layer]) for layer in layers)
    plan = parse(f"staged(method=random, layers=[{', '.join(map(str, layers))}], keep=[{keep}])")
    assert plan.stages == tuple(Stage(Site.llm_layer(k), methods.get("random")(), by_layer[k]) for k in layers)
    assert parse(str(plan)) == plan


@dataclass(frozen=True)
class Wordy(Method):
    """A method with every kind of field that a spec can express."""

    words: str = "a"
    numbers: tuple[int, ...] = (1, 2)
    shares: tuple[float, ...] = ()
    switches: tuple[bool, ...] = ()
    names: tuple[str, ...] = ()
    factor: float = 0.5

    sites = (SiteKind.PRE_LLM,)


TEXT = st.text(st.characters(exclude_characters="'", exclude_categories=["Cs"]), max_size=8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Wordy,
        words=TEXT,
        numbers=st.lists(st.integers(-99, 99), max_size=3).map(tuple),
        shares=st.lists(FINITE, max_size=3).map(tuple),
        switches=st.lists(st.booleans(), max_size=3).map(tuple),
        names=st.lists(TEXT, max_size=3).map(tuple),
        factor=FINITE,
    )
)
@settings(max_examples=100)
def test_fields_of_every_type_read_back_as_they_were(method):
    call = parse_calls(f"wordy({', '.join(option_words(method))})")[0]
    assert read_fields(Wordy, call.words, "wordy") == method


def test_a_text_with_both_kinds_of_quotes_is_refused_not_garbled():
    with pytest.raises(SpecError, match="both kinds of quotes"):
        option_words(Wordy(words="'\""))


def test_every_site_has_a_text():
    assert str(Stage(Site.pre_llm(), Wordy(), Budget.of_count(1))) == "test_roundtrip(site=pre_llm, keep=1tok)"
