"""The contract of token methods, for every method by its name, and proof that it rejects broken ones."""

from __future__ import annotations

from math import prod

import pytest
import torch

from foveate import methods
from foveate.api.capabilities import method_capabilities
from foveate.core.method import StepMethod, TokenMethod
from foveate.core.view import AttentionRows
from foveate.errors import MethodError, UnknownName
from tests import examples
from tests.oracles.broken import BROKEN, BROKEN_GATES, COSTLY, WAYS_TO_WAIT, Honest, HonestGate, Waits
from tests.oracles.contract import MANY, ContractBroken, check_costs, check_method, check_step_method, random_view


@pytest.mark.parametrize("method", examples.examples(TokenMethod), ids=str)
def test_every_method_keeps_the_contract(method):
    check_method(method)


@pytest.mark.parametrize("cls", [methods.get(name) for name in methods.names()], ids=methods.names())
def test_the_examples_of_a_method_use_every_option(cls):
    assert all(type(one) is cls for one in cls.examples())
    assert len({*cls.examples()}) == len(cls.examples())
    assert not examples.unused_options(cls), f"add examples() to {cls.__name__} that use them"


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


@pytest.mark.full
@pytest.mark.parametrize(("broken", "reason"), COSTLY.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_contract_rejects_methods_for_what_they_cost(broken, reason):
    with pytest.raises(ContractBroken, match=reason):
        check_method(broken())


@pytest.mark.full
@pytest.mark.parametrize("how", WAYS_TO_WAIT)
def test_every_way_of_waiting_is_seen(how):
    with pytest.raises(ContractBroken, match=r"waits for the device \d+ times, first for \w+ at broken\.py:\d+"):
        check_costs(Waits(how))


def test_methods_that_compare_tokens_hold_nearly_what_they_say():
    """Without its pairs each of them holds too much: none says more than it needs in order to be let through."""
    count = prod(MANY)
    comparing = [one for one in examples.firsts(TokenMethod) if one.pairs_at_once(count) > count**2 / 8]
    assert comparing
    for method in comparing:
        silent = type("Silent", (type(method),), {"pairs_at_once": lambda self, tokens: 0})
        with pytest.raises(ContractBroken, match=r"bytes at once|an entry for every two tokens"):
            check_costs(silent())


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


@pytest.mark.parametrize("row", method_capabilities(), ids=lambda row: row.name)
def test_what_a_method_does_is_what_its_class_says(row):
    assert (row.effect == "merges") is methods.get(row.name).merges


@pytest.mark.parametrize("method", examples.examples(StepMethod), ids=str)
def test_every_step_method_judges_each_token_on_its_own(method):
    check_step_method(method)


@pytest.mark.parametrize(("broken", "reason"), BROKEN_GATES.items())
def test_the_contract_rejects_broken_gates_for_what_they_break(broken, reason):
    with pytest.raises(ContractBroken, match=reason):
        check_step_method(broken())


def test_the_contract_accepts_an_honest_gate():
    check_step_method(HonestGate())


@pytest.mark.parametrize("method", examples.firsts(TokenMethod), ids=str)
def test_methods_ignore_the_default_dtype_of_the_caller(method):
    view = random_view(method, (1, 4, 4), seed=0)
    keep = method.fixed_count((1, 4, 4)) or 5
    expected = method.select(view, keep).kept
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(method.select(view, keep).kept, expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", examples.firsts(TokenMethod), ids=str)
def test_a_picture_that_holds_no_numbers_spoils_nobody_else(method, value):
    view = random_view(method, (1, 4, 4), seed=0)
    keep = method.fixed_count((1, 4, 4)) or 5
    clean = method.select(view, keep).kept
    view.features[1] = value
    for observed in view.observed.values():
        observed[1] = value
    selection = method.select(view, keep)
    selection.check_shapes(3, 16, keep)
    selection.check_values(16)
    assert torch.equal(selection.kept[[0, 2]], clean[[0, 2]])


def test_the_methods_are_those_of_the_files():
    assert set(methods.names()) >= {"fastv", "pool", "random", "uniform"}


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown method 'fastvv'\. Did you mean 'fastv'\? Known: .*uniform"):
        methods.get("fastvv")


def test_what_a_method_did_not_ask_for_it_does_not_get():
    view = random_view(methods.get("uniform")(), (1, 4, 4), seed=0)
    with pytest.raises(MethodError, match=r"add it to what needs\(\) returns"):
        view.observe(AttentionRows())
