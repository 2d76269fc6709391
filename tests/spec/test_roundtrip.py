"""parse(str(plan)) == plan and from_json(to_json(plan)) == plan, for plans of every method, option, budget and scope."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import methods
from foveate.core.budget import Budget, Rounding
from foveate.core.method import Method, TokenMethod
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import Site, SiteKind
from foveate.core.text import option_words
from foveate.errors import FoveateError, SpecError
from foveate.spec import from_json, parse, to_json
from foveate.spec.grammar import parse_calls
from foveate.spec.words import read_fields

WINDOW = st.integers(1, 99).map(lambda number: f"window:{number}")
OPTIONS = {
    "fastv": {
        "query": st.sampled_from(["last", "text", "all"]) | WINDOW,
        "rope": st.booleans(),
        "topk": st.just("global") | WINDOW,
    },
    "illava_v1": {
        "query": st.sampled_from(["last", "text", "all"]) | WINDOW,
        "ramp": st.sampled_from(["least", "most", "even"]),
    },
    "illava_v2": {
        "mode": st.sampled_from([1, 2, 3]),
        "recycle": st.just(0.05) | st.floats(0.001, 1),
        "partners": st.just(5) | st.integers(1, 99),
        "absorb": st.just(0.5) | st.floats(0.001, 0.999),
        "query": st.sampled_from(["last", "text", "all"]) | WINDOW,
    },
    "partition": {"query": st.sampled_from(["last", "text", "all"]) | WINDOW},
    "tome": {"proportional": st.booleans()},
    "random": {"seed": st.integers(0, 2**32 - 1)},
    "pool": {"size": st.integers(2, 9)},
    "uniform": {},
}
_TRAINED = {"path": st.sampled_from(["", "owner/name", "./a folder"]), "allow_mismatch": st.booleans()}
OPTIONS["dynamic_image"] = _TRAINED
_GATE = {
    "recent": st.integers(1, 99),
    "first": st.integers(0, 99),
    "protect": st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
}
GATES = {
    "random_gate": {**_GATE, "seed": st.integers(0, 2**32 - 1)},
    "stride_gate": _GATE,
    "dynamic_text": {**_GATE, **_TRAINED, "bias": st.floats(-9, 9)},
}
RATIOS = (
    st.decimals(min_value="0.001", max_value=1, places=3)
    | st.floats(1e-9, 1).map(lambda number: Decimal(str(number))).filter(lambda ratio: ratio.as_tuple().exponent >= -28)
    | st.integers(1, 10**28).map(lambda digits: Decimal(digits).scaleb(-28))
)
BUDGETS = st.builds(Budget, ratio=RATIOS, rounding=st.sampled_from(Rounding)) | st.builds(
    Budget, count=st.integers(1, 10**6), rounding=st.sampled_from(Rounding)
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    layers = sorted(draw(st.sets(st.integers(0, 40), max_size=4)))
    scopes = sorted(draw(st.lists(st.sampled_from(Scope), min_size=4, max_size=4)), key=_width)
    stages = []
    for layer, scope in zip(layers, scopes, strict=False):
        name = draw(st.sampled_from(sorted(OPTIONS)))
        options = draw(st.fixed_dictionaries(OPTIONS[name]))
        try:
            method = methods.get(name)(**options)
        except FoveateError:  # options that exclude each other
            continue
        site = Site.llm_layer(layer) if layer else Site.pre_llm()
        effect = draw(st.sampled_from(Effect)) if len(layers) == 1 else Effect.DROP
        fixed = isinstance(method, TokenMethod) and method.fixed_count((1, 4, 4)) is not None
        try:
            stages.append(Stage(site, method, None if fixed else draw(BUDGETS), scope, effect=effect))
            Plan(tuple(stages))
        except FoveateError:  # a place, order or effect that this method does not serve
            del stages[-1:]
    if draw(st.booleans()):
        text = methods.get("dynamic_instruct")(**draw(st.fixed_dictionaries(_TRAINED)))
        after = stages[-1].site.layer if stages else None
        stages.append(Stage(Site.llm_layer(max(1, after or 1)), text, Budget(threshold=draw(st.floats(0.01, 0.99)))))
        if any(stage.effect is Effect.MASK for stage in stages):
            del stages[-1:]
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(GATES)))
        gate = methods.get(name)(**draw(st.fixed_dictionaries(GATES[name])))
        budget = Budget(ratio=draw(RATIOS), rounding=draw(st.sampled_from(Rounding)))
        stages.append(Stage(Site(SiteKind.DECODE, draw(st.integers(0, 40))), gate, budget if gate.takes_keep else None))
        if any(stage.effect is Effect.MASK for stage in stages):
            del stages[-1:]
    return Plan(tuple(stages))


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


def test_the_plans_above_cover_every_method_and_every_option():
    assert {*OPTIONS, *GATES, "dynamic_instruct"} == set(methods.names())
    for name, options in {**OPTIONS, **GATES, "dynamic_instruct": _TRAINED}.items():
        assert set(options) == {field.name for field in fields(methods.get(name))}


@given(
    st.lists(st.tuples(st.integers(1, 40), BUDGETS.filter(lambda b: b.rounding is Rounding.HALF_UP)), min_size=1, max_size=5)
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
