"""Anything at all, given to what reads specs, plans, predictors and official configs: a result, or one line, at once."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate import methods, recipes
from foveate.convert.config import check_official, predictor_config
from foveate.errors import FoveateError
from foveate.predictors import IMAGE, TEXT
from foveate.predictors.files import CONFIG, read_config
from foveate.spec import from_json, load_plan, parse, to_json
from tests import tiny
from tests.convert import official
from tests.examples import filled, gated_plans, single_plans, text_plans
from tests.trained import random_predictors

SECOND = timedelta(seconds=2)
FEW = settings(max_examples=120, deadline=SECOND, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=5_000, deadline=SECOND, suppress_health_check=list(HealthCheck))

NUMBERS = st.integers(-3, 200) | st.sampled_from([10**6, 10**9, 10**18, 10**300, -(10**300)]) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.just("x" * 100_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLAN = parse("random(site=pre_llm, keep=0.3, rounding=ceil) | fastv(layer=2, keep=144) | stride_gate(layer=3, keep=0.5)")
WORDS = "none layer keep site K R ratio rounding half_even pre_llm 0.5 2 50% 1 nan 0..9999"
NAMES = [*methods.names(), *recipes.names()]
OPTIONS = sorted({field.name for name in NAMES for field in fields((methods if methods.has(name) else recipes).get(name))})
PIECES = (
    st.sampled_from(NAMES)
    | st.sampled_from([*WORDS.split(), *OPTIONS, *"()[],=|'\" \n\x00", "[" * 50, "9" * 50])
    | st.text(max_size=3)
)
# Good texts of every method and recipe, some of their characters changed.
GOOD = [
    filled(text, "llava")
    for text in (
        *single_plans(),
        *gated_plans(),
        *text_plans(),
        *(text for name in recipes.names() for text in recipes.get(name).examples()),
    )
]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(0, 3))):
        start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 4))
        text = text[:start] + draw(PIECES | st.just("")) + text[start + length :]
    return text


SPECS = st.lists(PIECES, max_size=40).map("".join) | damaged()


def one_line(read: Any) -> Any:
    """What is read, None where it is refused; any other error, and any long or broken line, fails."""
    try:
        return read()
    except FoveateError as error:
        message = str(error)
        assert message.isprintable() and 0 < len(message) < 1_200
    return None


def check_spec(text: str) -> None:
    plan = one_line(lambda: parse(text))
    if plan is not None:
        assert parse(str(plan)) == plan and from_json(to_json(plan)) == plan


def places(value: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [so_far, *(place for key, one in inner for place in places(one, (*so_far, key)))]


def with_changes(data: Any, changes: Any) -> Any:
    """JSON data with other values at some of its places."""
    holder = [copy.deepcopy(data)]
    for place, value in changes:
        at: Any = holder
        steps = (0, *place)
        try:
            for step in steps[:-1]:
                at = at[step]
            at[steps[-1]] = value
        except (TypeError, KeyError, IndexError):  # an earlier change took the place away
            continue
    return holder[0]


def changes_of(data: Any) -> Any:
    return st.lists(st.tuples(st.sampled_from(places(data)), JSON), min_size=1, max_size=3)


def check_plan(changes: Any) -> None:
    data = with_changes(to_json(PLAN), changes)
    plan = one_line(lambda: from_json(data))
    if plan is not None:
        assert from_json(json.loads(json.dumps(to_json(plan)))) == plan


@given(SPECS)
@FEW
def test_any_spec_is_read_or_refused_at_once(text):
    check_spec(text)


@pytest.mark.full
@given(SPECS)
@MANY
def test_any_spec_is_read_or_refused_at_once_many_times(text):
    check_spec(text)


@given(changes_of(to_json(PLAN)))
@FEW
def test_any_plan_in_json_is_read_or_refused_at_once(changes):
    check_plan(changes)


@pytest.mark.full
@given(changes_of(to_json(PLAN)))
@MANY
def test_any_plan_in_json_is_read_or_refused_at_once_many_times(changes):
    check_plan(changes)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
@FEW
def test_any_file_is_a_plan_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "plan.json"
    path.write_bytes(content)
    one_line(lambda: load_plan(path))


@pytest.fixture(scope="module")
def predictors(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predictors")
    random_predictors(folder, tiny.tiny_model("llava"))
    return folder


FIELDS = "base_model model_type hidden_size fingerprint layer keep text_keep instruct_keep width heads feedforward blocks"


@pytest.mark.full
@given(st.dictionaries(st.sampled_from([*FIELDS.split(), "provenance", "format", "colour"]), JSON, min_size=1, max_size=3))
@FEW
def test_any_description_of_predictors_is_read_or_refused_at_once(predictors, changes):
    file = predictors / CONFIG
    good = file.read_text(encoding="utf-8")
    try:
        file.write_text(json.dumps({**json.loads(good), **changes}), encoding="utf-8")
        config = one_line(lambda: read_config(str(predictors)))
    finally:
        file.write_text(good, encoding="utf-8")
    if config is not None:
        assert 1 <= config.layer < max(config.layers, 2) and 0 < config.keep <= 1 and config.blocks <= 64


@given(changes_of(official.config()))
@FEW
def test_any_official_config_is_read_or_refused_at_once(changes):
    data = with_changes(official.config(), changes)
    if isinstance(data, dict):
        one_line(lambda: (check_official(data, "src"), predictor_config(data, {IMAGE, TEXT}, "src", ())))
