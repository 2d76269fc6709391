"""The contract of token methods, for every method by its name, and proof that it rejects broken ones."""

from __future__ import annotations

import pytest
import torch

from foveate import methods
from foveate.core.method import StepMethod, TokenMethod
from foveate.core.view import AttentionRows
from foveate.errors import MethodError, UnknownName
from tests.oracles.broken import BROKEN, BROKEN_GATES, Honest, HonestGate
from tests.oracles.contract import ContractBroken, check_method, check_step_method, random_view

# Options beyond the defaults, for methods whose code they steer.
VARIANTS = {
    "fastv": [{"topk": "window:2"}, {"topk": "window:3", "query": "text", "rope": False}, {"query": "window:4"}],
    "illava_v1": [{"ramp": "most"}, {"ramp": "even"}],
    "illava_v2": [{"recycle": 1.0, "partners": 1}, {"recycle": 0.3, "absorb": 0.9}, {"mode": 1}, {"mode": 2}],
    "pool": [{"size": 3}],
    "random": [{"seed": 2**32 - 1}],
}
STEPS = [name for name in methods.names() if issubclass(methods.get(name), StepMethod)]
TOKENS = [name for name in methods.names() if name not in STEPS]
CASES = [(name, options) for name in TOKENS for options in ({}, *VARIANTS.get(name, []))]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_method_keeps_the_contract(name, options):
    method = methods.get(name)(**options)
    assert isinstance(method, TokenMethod)
    check_method(method)


REASONS = {
    "Unsorted": "ascending",
    "Repeats": "without repeats",
    "OffByOne": "outside",
    "TooMany": "budget asks for",
    "Leaks": "alone is treated unlike in company",
    "Writes": "wrote into features",
    "Forgets": "two calls with equal inputs differ",
    "DoubleSource": "one target",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_contract_rejects_broken_methods_for_what_they_break(broken):
    with pytest.raises((ContractBroken, MethodError), match=REASONS[broken.__name__]):
        check_method(broken())


def test_the_contract_accepts_an_honest_method():
    check_method(Honest())


@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_where_it_comes_from_and_what_it_is_called(name):
    method = methods.get(name)()
    assert method.name == name
    assert method.paper
    assert method.sites
    assert hash(method) == hash(methods.get(name)()) and method == methods.get(name)()


@pytest.mark.parametrize("name", STEPS)
def test_every_step_method_judges_each_token_on_its_own(name):
    method = methods.get(name)()
    assert isinstance(method, StepMethod)
    check_step_method(method)


@pytest.mark.parametrize(("broken", "reason"), BROKEN_GATES.items())
def test_the_contract_rejects_broken_gates_for_what_they_break(broken, reason):
    with pytest.raises(ContractBroken, match=reason):
        check_step_method(broken())


def test_the_contract_accepts_an_honest_gate():
    check_step_method(HonestGate())


@pytest.mark.parametrize("name", TOKENS)
def test_methods_ignore_the_default_dtype_of_the_caller(name):
    method = methods.get(name)()
    view = random_view(method, (1, 4, 4), seed=0)
    keep = method.fixed_count((1, 4, 4)) or 5
    expected = method.select(view, keep).kept
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(method.select(view, keep).kept, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_methods_are_those_of_the_files():
    assert set(methods.names()) >= {"fastv", "pool", "random", "uniform"}


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown method 'fastvv'\. Did you mean 'fastv'\? Known: .*uniform"):
        methods.get("fastvv")


def test_what_a_method_did_not_ask_for_it_does_not_get():
    view = random_view(methods.get("uniform")(), (1, 4, 4), seed=0)
    with pytest.raises(MethodError, match=r"add it to what needs\(\) returns"):
        view.observe(AttentionRows())
