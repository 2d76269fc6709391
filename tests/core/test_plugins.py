"""Methods, recipes and families of other packages: good ones serve, and a broken one costs one line and nothing else."""

from __future__ import annotations

import pytest

from tests.marks import one_and_more
from tests.plugins import FAMILY, METHOD, RECIPE, install, python, runs

BROKEN_MODULES = {
    "an import that fails": "import no_such_module_anywhere",
    "a division by zero": "1 / 0",
    "a syntax error": "def (",
    "an exit": "import sys; sys.exit(0)",
    "an error without words": "class E(BaseException):\n    def __str__(self): raise ValueError\nraise E",
    "no such class": "",
    "no class": "Mine = 3",
    "another class": "class Mine: pass",
    "an abstract class": "from foveate.core.method import TokenMethod\nclass Mine(TokenMethod): pass",
    "a failing __init__": METHOD + "    def __post_init__(self): raise RuntimeError('no weights')",
    "a failing name": METHOD + "    @property\n    def name(self): raise RuntimeError('no name')",
    "another name": METHOD + "    name = 'other'",
}
SHADOWS = [("methods", "illava"), ("recipes", "fastv"), ("methods", "fastv"), ("recipes", "illava")]


@pytest.mark.parametrize("text", one_and_more(BROKEN_MODULES.values()), ids=list(BROKEN_MODULES))
def test_a_broken_method_costs_one_line_that_names_its_package(tmp_path, text):
    install(tmp_path, "broken-pack", {"foveate.methods": "mine = mine:Mine"}, {"mine": text})
    plans = [f"{name}(layer=2, keep=0.5)" for name in ("fastv", "mine", "fatsv")]
    ours, asked_for, unknown, listed = runs(tmp_path, *(["plan", plan] for plan in plans), ["methods"])
    assert (ours.code, ours.err) == (0, "")
    assert asked_for.code == 2 and "broken-pack" in asked_for.err and len(asked_for.err.splitlines()) == 1
    *warned, last = unknown.err.splitlines()
    assert unknown.code == 2 and "Did you mean 'fastv'" in last
    (line,) = warned
    assert "broken-pack" in line and "'mine'" in line
    assert listed.code == 0 and "fastv" in listed.out and not listed.err  # one warning in a process is enough


@pytest.mark.full
def test_a_broken_method_takes_no_other_with_it(tmp_path):
    install(tmp_path, "broken-pack", {"foveate.methods": "mine = mine:Mine"}, {"mine": "1 / 0"})
    install(
        tmp_path, "worse-pack", {"foveate.methods": "slow = slow:Mine"}, {"slow": METHOD + "    def select(self, v, k): 1 / 0"}
    )
    install(tmp_path, "good-pack", {"foveate.methods": "fine = fine:Mine"}, {"fine": METHOD})
    (done,) = runs(tmp_path, ["methods"])
    assert done.code == 0 and "fine" in done.out and "fastv" in done.out and "slow" not in done.out
    first, second = done.err.splitlines()
    assert "broken-pack" in first and "'slow'" in second and "ZeroDivisionError" in second


def test_ctrl_c_in_a_plugin_is_ctrl_c(tmp_path):
    install(tmp_path, "pack", {"foveate.methods": "mine = mine:Mine"}, {"mine": "raise KeyboardInterrupt"})
    assert runs(tmp_path, ["methods"])[0].code == 130


def test_python_gets_a_broken_plugin_as_one_warning(tmp_path):
    install(tmp_path, "broken-pack", {"foveate.methods": "mine = mine:Mine"}, {"mine": "1 / 0"})
    program = """
import warnings, foveate
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert foveate.methods.names() == foveate.methods.names() and "mine" not in foveate.methods.names()
(one,) = seen
assert "broken-pack" in str(one.message) and "division by zero" in str(one.message), one.message
try:
    foveate.methods.get("mine")
except foveate.FoveateError as error:
    assert isinstance(error, TypeError) and "broken-pack" in str(error)
"""
    done = python(tmp_path, program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", one_and_more(["My Method", "a-b", "Ünï", "2x", "none", "A"]))
def test_a_name_that_no_plan_can_hold_is_refused(tmp_path, name):
    install(tmp_path, "odd-pack", {"foveate.methods": f"{name} = mine:Mine"}, {"mine": METHOD})
    (done,) = runs(tmp_path, ["methods"])
    assert done.code == 0 and "odd-pack" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.full
@pytest.mark.parametrize("lines", one_and_more(["mine", "mine = ", "= mine:Mine", "mine = mine:Mine:Mine"]))
def test_entry_points_that_cannot_be_read_hide_nobody_else_s(tmp_path, lines):
    install(tmp_path, "odd-pack", {"foveate.methods": lines}, {"mine": METHOD})
    install(tmp_path, "good-pack", {"foveate.methods": "fine = fine:Mine"}, {"fine": METHOD})
    served, unknown = runs(tmp_path, ["plan", "fine(layer=2, keep=0.5)"], ["plan", "fatsv(layer=2, keep=0.5)"])
    assert served.code == 0
    said = (served.err + unknown.err).splitlines()
    assert unknown.code == 2 and len(said) == 2 and "odd-pack" in said[0] and "Did you mean 'fastv'" in said[1]


@pytest.mark.full
@pytest.mark.parametrize(
    ("group", "name"), one_and_more([("methods", "illava"), ("recipes", "fastv"), ("methods", "fastv"), ("recipes", "illava")])
)
def test_ours_are_never_shadowed(tmp_path, group, name):
    install(tmp_path, "greedy-pack", {f"foveate.{group}": f"{name} = {name}:Mine"}, {name: "raise RuntimeError('loaded')"})
    plan = {"fastv": "fastv(layer=2, keep=0.5)", "illava": "illava(preset=qwen2-vl-7b)"}[name]
    for arguments in (("methods",), ("plan", plan, "--model", "qwen2-vl-7b")):
        (done,) = runs(tmp_path, [*arguments])
        assert done.code == 0 and "loaded" not in done.err
        assert len(done.err.splitlines()) <= 1
    (done,) = runs(tmp_path, ["methods"])
    assert "greedy-pack" in done.err and "foveate has that name itself" in done.err


@pytest.mark.full
def test_a_name_that_two_packages_want_is_nobody_s(tmp_path):
    for package in ("one-pack", "two-pack"):
        install(tmp_path, package, {"foveate.methods": "mine = mine:Mine"}, {"mine": METHOD})
    (done,) = runs(tmp_path, ["methods"])
    assert done.code == 0 and "one-pack" in done.err and "two-pack" in done.err
    assert len(done.err.splitlines()) == 1 and "mine" not in done.out
    assert runs(tmp_path, ["plan", "mine(layer=2, keep=0.5)"])[0].code == 2


def test_a_name_registered_twice_by_one_package_is_nobody_s(tmp_path):
    lines = "mine = mine:Mine\nmine = other:Mine"
    install(tmp_path, "double-pack", {"foveate.methods": lines}, {"mine": METHOD, "other": METHOD})
    (done,) = runs(tmp_path, ["methods"])
    (line,) = done.err.splitlines()
    assert done.code == 0 and "double-pack" in line and "more than once" in line


def test_a_name_cannot_be_a_method_of_one_and_a_recipe_of_another(tmp_path):
    install(tmp_path, "one-pack", {"foveate.methods": "mine = mine:Mine"}, {"mine": METHOD})
    install(tmp_path, "two-pack", {"foveate.recipes": "mine = other:Mine"}, {"other": RECIPE})
    (done,) = runs(tmp_path, ["methods"])
    assert done.code == 0 and "one-pack" in done.err and "two-pack" in done.err
    assert "Traceback" not in done.err


@pytest.mark.full
def test_good_plugins_serve_as_ours_do(tmp_path):
    points = {
        "foveate.methods": "mine = mine:Mine",
        "foveate.recipes": "twice = twice:Mine",
        "foveate.families": "my = my:Mine",
    }
    install(tmp_path, "good-pack", points, {"mine": METHOD, "twice": RECIPE, "my": FAMILY})
    plans = (["plan", plan] for plan in ("mine(layer=2, keep=0.5)", "twice()"))
    listed, one, two, models = runs(tmp_path, ["methods"], *plans, ["models"])
    assert [(done.code, done.err) for done in (listed, one, two, models)] == [(0, "")] * 4
    assert "mine" in listed.out and "twice" in listed.out and "minemodel" in models.out


LYING_FAMILIES = {
    "a string of model types": FAMILY.replace('("minemodel",)', '"minemodel"'),
    "no model types": FAMILY.replace('("minemodel",)', "None"),
    "numbers for model types": FAMILY.replace('("minemodel",)', "(3,)"),
    "model types that raise": FAMILY.replace('model_types = ("minemodel",)', "model_types = property(lambda self: 1 / 0)"),
    "no title": FAMILY.replace('"Mine"', "None"),
    "sites in a list": FAMILY + "    unsupported = ['vision']",
    "a failing covers": FAMILY + "    def covers(self, config): raise SystemExit",
    "a failing __init__": FAMILY + "    def __init__(self): 1 / 0",
    "an abstract class": "from foveate.families import Family\nclass Mine(Family): model_types = ('minemodel',)",
}


@pytest.mark.full
@pytest.mark.parametrize("text", one_and_more(LYING_FAMILIES.values()), ids=list(LYING_FAMILIES))
def test_a_family_that_lies_hides_no_other(tmp_path, text):
    install(tmp_path, "lying-pack", {"foveate.families": "aaa = aaa:Mine"}, {"aaa": text})
    install(tmp_path, "good-pack", {"foveate.families": "zzz = zzz:Mine"}, {"zzz": FAMILY})
    program = """
from types import SimpleNamespace
from foveate import families
from foveate.api import resolve_config
assert families.family_for(resolve_config("llava-1.5-7b")).title == "LLaVA 1.5"
assert families.get("zzz").title == "Mine" == families.family_for(SimpleNamespace(model_type="minemodel",
    vision_config=SimpleNamespace(model_type="clip_vision_model"))).title
"""
    done = python(tmp_path, program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lying-pack") == 1
    (done,) = runs(tmp_path, ["plan", "--model", "llava-1.5-7b"])
    assert (done.code, done.err) == (0, "")


def test_a_family_that_claims_every_model_gets_none_of_ours(tmp_path):
    install(
        tmp_path,
        "greedy-pack",
        {"foveate.families": "aaa = aaa:Mine"},
        {"aaa": FAMILY + "    def covers(self, c): return True"},
    )
    (done,) = runs(tmp_path, ["plan", "--model", "qwen2.5-vl-7b"])
    assert done.code == 0 and "999" in done.out
