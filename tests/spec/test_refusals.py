"""What a spec must not say: each refusal is one line with the words that help."""

from __future__ import annotations

import pytest

from foveate import methods, recipes
from foveate.errors import FoveateError, UnknownName
from foveate.spec import Plan

REFUSALS = {
    # what stays
    "fastv(layer=2, keep=0)": "keep=0: a count must be at least 1",
    "fastv(layer=2, keep=0.0)": "more than 0 and at most 1",
    "fastv(layer=2, keep=0%)": "more than 0 and at most 1",
    "fastv(layer=2, keep=1)": "keep=1 is ambiguous: write keep=100% (all tokens) or keep=1tok (one token)",
    "fastv(layer=2, keep=1.)": "ambiguous",
    "fastv(layer=2, keep=01)": "ambiguous",
    "fastv(layer=2, keep=+1)": "ambiguous",
    "fastv(layer=2, keep=1.5)": "a ratio is at most 1 and a count is a whole number",
    "fastv(layer=2, keep=150%)": "at most 1",
    "fastv(layer=2, keep=-1)": "more than 0",
    "fastv(layer=2, keep=-0.5)": "more than 0",
    "fastv(layer=2, keep=nan)": "write a ratio (0.5), a percentage (50%) or a count (144)",
    "fastv(layer=2, keep=inf)": "write a ratio (0.5), a percentage (50%) or a count (144)",
    "fastv(layer=2, keep=-inf)": "write a ratio",
    "fastv(layer=2, keep=abc)": "keep=abc: write a ratio",
    "fastv(layer=2, keep=1_000)": "write a ratio",
    "fastv(layer=2, keep=1e-999)": "at most 28 decimals",
    "fastv(layer=2, keep=[0.5, 0.25])": "keep=[0.5, 0.25]: one value is expected here, not a list",
    "fastv(layer=2)": "fastv needs keep, e.g. keep=0.5 (what stays)",
    "pool(site=pre_llm, keep=0.5)": "pool fixes its own count: leave keep out",
    # papers count what they remove
    "fastv(layer=2, r=.5)": "fastv(r=.5): papers' R is what is removed; say what stays, e.g. keep=0.5",
    "fastv(layer=2, ratio=.5)": "papers' R is what is removed",
    "fastv(layer=2, r=[1, 2])": "fastv(r=[1, 2]): papers' R",
    # where
    "fastv(layer=0, keep=0.5)": "layer=0: no decoder layer has run yet; write site=pre_llm",
    "fastv(layer=-1, keep=0.5)": "layer=-1): a layer is a whole number >= 1",
    "fastv(layer=2.5, keep=0.5)": "a layer is a whole number",
    "fastv(layer=two, keep=0.5)": "a layer is a whole number",
    "fastv(layer=², keep=0.5)": "a layer is a whole number",
    "fastv(layer=[2, 3], keep=0.5)": "[2, 3] is a list where one value is expected",
    "fastv(layer=2..3, keep=0.5)": "[2, 3] is a list where one value is expected",
    "fastv(keep=0.5)": "fastv needs a place: layer=2 (before decoder layer 2) or site=pre_llm",
    "fastv(site=pre_llm, keep=0.5)": "fastv cannot act at site pre_llm; it acts at: llm; no attention exists before the LLM",
    "uniform(site=prellm, keep=0.5)": "site=prellm is not known. Did you mean 'pre_llm'?",
    "uniform(site=pre_llm, layer=3, keep=0.5)": "site pre_llm: takes no layer",
    "uniform(site=llm, keep=0.5)": "site llm: needs a layer",
    "fastv(layer=3, keep=0.5) | fastv(layer=2, keep=0.5)": "in the order in which the model meets them; llm(2) comes too late",
    "fastv(layer=2, keep=0.5) | random(layer=2, keep=0.5)": "two stages act at llm(2)",
    # names
    "fastvv(layer=2, keep=0.5)": "unknown method 'fastvv'. Did you mean 'fastv'?",
    "stagd(layers=[2], keep=[0.5])": "Did you mean 'staged'?",
    "none | fastv(layer=2, keep=0.5)": "'none' is the plain model and stands alone",
    "fastv(layer=2, keep=0.5, qeury=text)": "fastv has no option 'qeury'. Did you mean 'query'?",
    "fastv(layer=2, kep=0.5)": "fastv has no option 'kep'. Did you mean 'keep'?",
    "fastv(layer=2, keep=0.5, scope=samples)": "scope=samples is not known. Did you mean 'sample'?",
    "fastv(layer=2, keep=0.5, effect=[drop, mask])": "[drop, mask] is a list where one value is expected",
    "fastv(layer=2, keep=0.5, role=system)": "fastv does not touch system tokens",
    "fastv(layer=2, keep=0.5, role=vision)": "role=vision is not known. Did you mean 'visual'?",
    "fastv(layer=2, keep=0.5, rounding=up)": "rounding=up is not known",
    # values of options
    "fastv(layer=2, keep=0.5, rope=maybe)": "fastv(rope=...) is a switch: write on or off, not maybe",
    "fastv(layer=2, keep=0.5, query=[last, text])": "fastv(query=...) takes one value, not a list",
    "fastv(layer=2, keep=0.5, query=first)": "fastv(query=first): allowed are last, text, all or window:w",
    "random(layer=2, keep=0.5, seed=abc)": "random(seed=...) takes a whole number, not abc",
    "random(layer=2, keep=0.5, seed=1.5)": "random(seed=...) takes a whole number, not 1.5",
    "random(layer=2, keep=0.5, seed=-1)": "a seed is a whole number from 0",
    "random(layer=2, keep=0.5, seed=99999999999999999999)": "whole number",
    "pool(site=pre_llm, size=1)": "pool(size=1): a cell is at least 2 tokens wide",
    # recipes
    "staged(layers=[2, 3], keep=0.5)": "staged has 2 layers and 1 budgets",
    "staged()": "staged has 0 layers and 0 budgets",
    "staged(method=fastvv, layers=[2], keep=[0.5])": "Did you mean 'fastv'?",
    "staged(layers=[2, x], keep=[0.5, 0.5])": "staged(layers=...) takes a whole number, not x",
    "staged(layers=[3, 2], keep=[0.5, 0.5])": "comes too late",
    "staged(layers=[2], keep=[1])": "keep=1 is ambiguous",
    "staged(layer=2, keep=[0.5])": "staged has no option 'layer'. Did you mean 'layers'?",
    # grammar
    "": "empty spec: write e.g.",
    "   ": "empty spec",
    "|": "expected a method or recipe name, found '|'",
    "fastv(layer=2, keep=0.5": "expected ')', found 'the end'",
    "fastv(layer=2, keep=[0.5": "expected ']', found 'the end'",
    "fastv(layer=2, query='text, keep=0.5)": "a quote is not closed",
    "fastv(layer=2, keep=0.5))": "expected '|' or the end, found ')'",
    "fastv(layer=2, keep=0.5) fastv": "expected '|' or the end, found 'fastv'",
    "fastv(layer=2, keep=0.5) |": "expected a method or recipe name, found 'the end'",
    "fastv(layer=2, layer=3, keep=0.5)": "fastv: layer is given twice",
    "fastv(layer 2, keep=0.5)": "expected '=', found '2'",
    "fastv(layer=, keep=0.5)": "expected a value, found ','",
    "fastv(2, 0.5)": "expected an option, found '2'",
    "2fast(layer=2)": "expected a method or recipe name, found '2fast'",
    "staged(layers=8..5, keep=[0.5])": "range 8..5 runs backwards: write 5..8",
    "staged(layers=1..99999999999, keep=[0.5])": "at most 10000 are read",
    "staged(layers=[[1], [2]], keep=[0.5, x])": "keep=x: write a ratio",
}


@pytest.mark.parametrize(("text", "words"), REFUSALS.items(), ids=list(REFUSALS))
def test_a_spec_that_cannot_be_meant_gets_one_line_that_helps(text, words):
    with pytest.raises(FoveateError) as caught:
        Plan.parse(text)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_an_unknown_method_lists_methods_and_recipes():
    with pytest.raises(UnknownName) as caught:
        Plan.parse("zzz(keep=0.5)")
    known = str(caught.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert set(known) == {*methods.names(), *recipes.names(), "none"}
