"""Plan files: written, read, and refused in one line when they are not what they should be."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.plan import Plan
from foveate.errors import BudgetError, FoveateError, PlanError, SpecError, UnknownName
from foveate.spec import from_json, load_plan, parse, save_plan, to_json

PLAN = parse("random(site=pre_llm, keep=0.123456789012345678901, rounding=ceil) | fastv(layer=2, keep=144, query=text)")
GOOD = to_json(PLAN)


def test_a_plan_file_reads_back(tmp_path):
    path = tmp_path / "plan.json"
    save_plan(PLAN, path)
    assert load_plan(path) == PLAN
    assert load_plan(str(path)) == PLAN
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_the_format_of_the_file():
    assert to_json(parse("fastv(layer=2, keep=0.5)")) == {
        "format": 1,
        "stages": [
            {
                "method": "fastv",
                "options": {"query": "last", "rope": True, "topk": "global"},
                "site": "llm",
                "layer": 2,
                "keep": {"ratio": 0.5},
                "scope": "medium",
                "role": "visual",
                "effect": "drop",
            }
        ],
    }
    assert to_json(parse("uniform(layer=2, keep=144)"))["stages"][0]["keep"] == {"count": 144}
    assert to_json(parse("pool(site=pre_llm)"))["stages"][0]["keep"] is None


def test_a_ratio_that_a_float_would_round_is_a_text():
    assert GOOD["stages"][0]["keep"] == {"ratio": "0.123456789012345678901", "rounding": "ceil"}


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(SpecError, match=r"no plan file at .*missing\.json"):
        load_plan(tmp_path / "missing.json")
    with pytest.raises(SpecError, match=r".* is a folder: name a plan file"):
        load_plan(tmp_path)
    with pytest.raises(SpecError, match=r"the plan is not saved: cannot write .*: No such file"):
        save_plan(PLAN, tmp_path / "no" / "plan.json")


@pytest.mark.parametrize("content", [b"", b"{", b"fastv(layer=2, keep=0.5)", b"\xff\xfe\x00", b"[" * 100_000])
def test_files_that_are_not_json(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"plan\.json( is not JSON| is not UTF-8|: lists and objects lie more than 64 deep)"):
        load_plan(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 30, "9" * 5_000])
def test_a_file_with_a_number_that_json_or_a_plan_has_not_is_refused(tmp_path, number):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD).replace("144", number), encoding="utf-8")
    with pytest.raises(SpecError, match=r"plan file .*plan\.json: "):
        load_plan(path)


def test_a_file_that_says_a_thing_twice_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD).replace('"count": 144', '"count": 144, "count": 145'), encoding="utf-8")
    with pytest.raises(SpecError, match="'count' is given twice"):
        load_plan(path)


def test_what_is_no_file_of_a_plan_s_size_is_refused_without_being_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 2**40)
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "huge.json", tmp_path / ("x" * 300), "", "a\0b", "~nosuchuser/x"):
        with pytest.raises(SpecError) as caught:
            load_plan(path)
        assert str(caught.value).isprintable()


def test_a_plan_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    path = tmp_path / "plan.json"
    save_plan(PLAN, path)
    (tmp_path / "link.json").symlink_to(path)
    save_plan(Plan(), tmp_path / "link.json")
    assert load_plan(path) == Plan() and (tmp_path / "link.json").is_symlink()
    with pytest.raises(SpecError):
        save_plan(PLAN, tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.json", "plan.json"]


def changed(path: str, value: Any) -> Any:
    """GOOD with the value at `a.b.c` replaced, or removed where the value is Ellipsis."""
    data = copy.deepcopy(GOOD)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = data
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


REFUSALS = [
    ("format", 2, SpecError, "plan format 2 is not known; this version reads format 1"),
    ("format", ..., SpecError, "plan format None is not known"),
    ("stages", ..., SpecError, "'stages' must be a list"),
    ("stages", {}, SpecError, "'stages' must be a list"),
    ("stages.0", "fastv", SpecError, "stage 1: a stage must be a JSON object, not a text"),
    ("stages.0", None, SpecError, "a stage must be a JSON object, not null"),
    *[(f"stages.1.{key}", ..., SpecError, f"stage 2: '{key}' is missing") for key in GOOD["stages"][0]],
    ("stages.0.methd", "x", SpecError, "'methd' is not part of a stage. Did you mean 'method'?"),
    ("stages.1.method", "fastvv", UnknownName, "stage 2: unknown method 'fastvv'. Did you mean 'fastv'?"),
    ("stages.1.method", 3, SpecError, "'method' is a name, not a number"),
    ("stages.1.method", ["fastv"], SpecError, "'method' is a name, not a list"),
    ("stages.1.options", [], SpecError, "the options of fastv must be a JSON object, not a list"),
    ("stages.1.options.qeury", "text", SpecError, "Did you mean 'query'?"),
    ("stages.1.options.query", 3, SpecError, "fastv(query=...) takes str, not a number"),
    ("stages.1.options.query", "first", SpecError, "allowed are last, text, all"),
    ("stages.1.options.rope", 1, SpecError, "fastv(rope=...) takes bool, not a number"),
    ("stages.0.options.seed", "3", SpecError, "random(seed=...) takes int, not a text"),
    ("stages.0.options.seed", True, SpecError, "takes int, not true or false"),
    ("stages.0.options.seed", 1.5, SpecError, "takes int, not a number"),
    ("stages.1.site", "lmm", SpecError, "site='lmm' is not known. Did you mean 'llm'?"),
    ("stages.1.site", [], SpecError, "site=[] is not known"),
    ("stages.1.site", "pre_llm", PlanError, "takes no layer"),
    ("stages.1.layer", "2", SpecError, "layer='2': a layer is a whole number or null"),
    ("stages.1.layer", 2.0, SpecError, "a layer is a whole number"),
    ("stages.1.layer", True, SpecError, "a layer is a whole number"),
    ("stages.1.layer", None, PlanError, "needs a layer"),
    ("stages.1.layer", 0, PlanError, "fastv(layer=0): no decoder layer has run yet; fastv cannot act before"),
    ("stages.1.layer", -1, PlanError, "never negative"),
    ("stages.1.keep", 0.5, SpecError, "'keep' must be a JSON object, not a number"),
    ("stages.1.keep", None, BudgetError, "fastv needs keep"),
    ("stages.1.keep", {}, BudgetError, "exactly one of"),
    ("stages.1.keep", {"ratio": 0.5, "count": 3}, BudgetError, "exactly one of"),
    ("stages.1.keep", {"ratoi": 0.5}, SpecError, "Did you mean 'ratio'?"),
    ("stages.1.keep", {"ratio": "half"}, BudgetError, "keep=half: a ratio is a number"),
    ("stages.1.keep", {"ratio": [0.5]}, SpecError, "a ratio is a number, not a list"),
    ("stages.1.keep", {"ratio": True}, SpecError, "a ratio is a number, not true or false"),
    ("stages.1.keep", {"threshold": 10**18}, BudgetError, "scores are probabilities"),
    ("stages.1.keep", {"count": 10**18}, BudgetError, "a count is at most 1,000,000,000"),
    ("stages.1.layer", 10**18, PlanError, "no model has 1,000,000 layers"),
    ("stages.0.options.seed", 10**18, SpecError, "takes a finite number below 1e18"),
    ("stages.1.method", "x" * 100_000, UnknownName, "unknown method 'xxx"),
    ("stages.1.site", "x" * 100_000, SpecError, "is not known"),
    ("colour", 1, SpecError, "'colour' is not part of a plan"),
    ("format", True, SpecError, "plan format True is not known"),
    ("format", 1.0, SpecError, "plan format 1.0 is not known"),
    ("stages", [None] * 1_001, SpecError, "1,001 stages: a plan has at most 1,000"),
    ("stages.1.keep", {"ratio": 1.5}, BudgetError, "more than 0 and at most 1"),
    ("stages.1.keep", {"count": "144"}, SpecError, "a count is a whole number, not a text"),
    ("stages.1.keep", {"count": 14.4}, SpecError, "a count is a whole number, not a number"),
    ("stages.1.keep", {"count": 0}, BudgetError, "at least 1"),
    ("stages.1.keep", {"threshold": "x"}, SpecError, "a threshold is a number"),
    ("stages.1.keep", {"threshold": 0.1}, BudgetError, "cannot keep by threshold"),
    ("stages.1.keep", {"count": 3, "rounding": "up"}, SpecError, "rounding='up' is not known"),
    ("stages.1.keep", {"count": 3, "unit": "group"}, SpecError, "'unit' is not part of 'keep'"),
    ("stages.1.scope", "all", SpecError, "scope='all' is not known"),
    ("stages.1.role", "VISUAL", SpecError, "role='VISUAL' is not known"),
    ("stages.1.role", None, SpecError, "role=None is not known"),
    ("stages.1.effect", 1, SpecError, "effect=1 is not known"),
    ("stages.0.site", "decode", PlanError, "needs a layer"),
]


@pytest.mark.parametrize(("path", "value", "error", "words"), REFUSALS)
def test_a_file_that_is_wrong_somewhere_is_refused_in_one_line(tmp_path, path, value, error, words):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(changed(path, value)), encoding="utf-8")
    with pytest.raises(error) as caught:
        load_plan(file)
    message = str(caught.value)
    assert type(caught.value) is error and len(message) < 1_100
    assert message.startswith(f"plan file {file}: ")
    assert words in message and "\n" not in message


@pytest.mark.parametrize("huge", [10**5_000, -(10**5_000), math.nan, math.inf, [10**5_000]], ids=lambda value: "")
def test_numbers_that_only_python_can_hold_are_refused_too(huge):
    for place in ("stages.1.layer", "stages.0.options.seed", "stages.1.keep.count", "stages.0.keep.ratio", "format"):
        with pytest.raises(FoveateError):
            from_json(changed(place, huge))
    with pytest.raises(FoveateError):
        from_json(changed("stages.1.keep", {"threshold": huge}))


@pytest.mark.parametrize("data", [None, [], "x", 3, True])
def test_json_that_is_no_object_is_refused(data):
    with pytest.raises(SpecError, match="a plan is a JSON object with 'format' and 'stages', not"):
        from_json(data)


KEYS = st.sampled_from(["ratio", "count", "seed", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["ratio", "count", "seed", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = [f"stages.{stage}.{key}" for stage in (0, 1) for key in GOOD["stages"][0]] + ["format", "stages"]


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=150)
def test_any_value_anywhere_is_read_or_refused(place, value):
    data = changed(place, value)
    with contextlib.suppress(FoveateError):  # any other error fails the test
        plan = from_json(data)
        assert from_json(to_json(plan)) == plan
