"""What a spec must not say: each refusal is one line with the words that help."""

from __future__ import annotations

import itertools
import time

import pytest

from foveate import methods, recipes
from foveate.errors import FoveateError, PlanError, SpecError, UnknownName
from foveate.spec import as_plan, parse

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
    # other programs' words
    "fastv(K=2, R=0.5)": "fastv(K=2, R=0.5): K is the layer, keep = 1 - R: write fastv(layer=2, keep=0.5)",
    "fastv(K=3, R=75%, query=text)": "write fastv(layer=3, keep=25%, query=text)",
    "fastv(layer=2, r=.4)": "fastv(r=.4): keep = 1 - r: write keep=0.6",
    "fastv(layer=2, compression_ratio=0.5)": "keep = 1 - compression_ratio: write keep=0.5",
    "fastv(layer=2, reduction_ratio=0.9)": "keep = 1 - reduction_ratio: write keep=0.1",
    "fastv(layer=2, prune_ratio=0.25)": "keep = 1 - prune_ratio: write keep=0.75",
    "fastv(layer=2, ratio=.5)": "keep = 1 - ratio: write keep=0.5",
    "fastv(layer=2, keep_ratio=0.3)": "keep_ratio is keep: write keep=0.3",
    "fastv(layer=2, retention_ratio=22.2%)": "retention_ratio is keep: write keep=22.2%",
    "fastv(layer=2, num_tokens=64)": "num_tokens is keep: write keep=64",
    "fastv(layer=2, rank=144)": "rank is keep: write keep=144",
    "fastv(attention_layer=3, keep=0.5)": "attention_layer is the layer: write layer=3",
    "fastv(fast_v_agg_layer=2, fast_v_attention_rank=72)": "write fastv(layer=2, keep=72)",
    "fastv(layer=2, k=144)": "k is keep: write keep=144",
    "fastv(layer=2, k=10%)": "k is keep: write keep=10%",
    "fastv(layer=2, K=3, keep=0.5)": "K is the layer, which is given already: leave K out",
    "fastv(layer=2, r=[0.4, 0.2])": "keep = 1 - r: write keep=[0.6, 0.8]",
    "tome(layer=2, r=8)": "keep = 1 - r: write keep=0.5",
    "fastv(layer=2, R=abc)": "write keep=0.5",
    "staged(layers=[2, 8], ratio=[0.4, 0.2])": "write keep=[0.6, 0.8]",
    # where
    "fastv(layer=0, keep=0.5)": "fastv cannot act before the LLM, use it with layer=1 or later, or a method that can: ",
    "uniform(layer=0, keep=0.5)": "no decoder layer has run yet; write uniform(site=pre_llm, ...) to act before the LLM",
    "dynamic_image(layer=0, keep=0.5)": "e.g. random(site=pre_llm, keep=0.5)",
    "staged(layers=[0, 1], keep=[0.5, 0.5])": "use a method that needs none, e.g. random(site=pre_llm, keep=0.5)",
    "fastv(layer=-1, keep=0.5)": "layer=-1): a layer is a whole number >= 1",
    "fastv(layer=2.5, keep=0.5)": "a layer is a whole number",
    "fastv(layer=L2, keep=0.5)": "a layer is a whole number >= 1, layer=2?",
    "fastv(Layer=2, keep=0.5)": "fastv has no option 'Layer'. Did you mean 'layer'?",
    "FastV(layer=2, keep=0.5)": "unknown method 'FastV'. Did you mean 'fastv'?",
    "fast_v(layer=2, keep=0.5)": "Did you mean 'fastv'?",
    "fastv(layer=2, KEEP=0.5)": "Did you mean 'keep'?",
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
    "staged(layers=1..99999999999, keep=[0.5])": "at most 1000 are read",
    "staged(layers=[[1], [2]], keep=[0.5, x])": "keep=x: write a ratio",
}


@pytest.mark.parametrize(("text", "words"), REFUSALS.items(), ids=list(REFUSALS))
def test_a_spec_that_cannot_be_meant_gets_one_line_that_helps(text, words):
    with pytest.raises(FoveateError) as caught:
        parse(text)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_the_methods_named_for_the_place_before_the_llm_act_there():
    with pytest.raises(FoveateError) as caught:
        parse("fastv(layer=0, keep=0.5)")
    able = str(caught.value).partition("a method that can: ")[2].partition(", e.g. ")[0].split(", ")
    assert {"pool", "random", "tome", "uniform"} <= set(able)
    for name in able:
        counts = methods.get(name).examples()[0].fixed_count((1, 2, 2)) is not None
        parse(f"{name}(site=pre_llm{'' if counts else ', keep=0.5'})")
    parse(str(caught.value).partition("e.g. ")[2])


HUGE = {
    "many long ranges": "staged(layers=[" + "0..9999, " * 200 + "], keep=[0.5])",
    "many ranges": "staged(layers=[" + "0..999, " * 2_000 + "], keep=[0.5])",
    "a megabyte of brackets": "[" * 1_000_000,
    "brackets as a value": "fastv(layer=" + "[" * 1_000_000,
    "some brackets": "fastv(layer=" + "[" * 9_000 + "]" * 9_000 + ")",
    "a megabyte of blanks": " " * 1_000_000,
    "a megabyte of a name": "a" * 1_000_000,
    "a long name": "a" * 19_000,
    "a long option": f"fastv({'a' * 19_000}=1)",
    "a long text": f"fastv(layer=2, keep=0.5, query='{'x' * 19_000}')",
    "many stages": "random(site=pre_llm,keep=.5)|" * 600 + "none",
    "many equal stages": "|".join(f"random(layer={n},keep=9)" for n in range(1, 800)) + "|x",
    "many names": "a|" * 9_000 + "a",
    "a layer of 5,000 digits": f"fastv(layer={'9' * 5_000}, keep=0.5)",
    "a count of 5,000 digits": f"fastv(layer=2, keep={'9' * 5_000})",
    "a ratio of 5,000 digits": f"fastv(layer=2, keep=0.{'1' * 5_000})",
    "a percentage of 5,000 digits": f"fastv(layer=2, keep={'9' * 5_000}%)",
    "a threshold of 5,000 digits": f"fastv(layer=2, keep=threshold:{'9' * 5_000})",
    "a seed of 5,000 digits": f"random(layer=2, keep=0.5, seed={'9' * 5_000})",
    "a window of 5,000 digits": f"fastv(layer=2, keep=0.5, query=window:{'9' * 5_000})",
    "a removed share of 5,000 digits": f"fastv(layer=2, r=0.{'9' * 5_000})",
    "a range of 5,000 digits": f"staged(layers={'9' * 5_000}..{'9' * 5_001}, keep=[0.5])",
    "a count beyond all models": "fastv(layer=2, keep=9999999999)",
    "an escape sequence": "fastv(layer=2, keep=\x1b[31m0.5)",
    "a line end in a name": "fastv(layer=2, keep='a\nb')",
}


@pytest.mark.parametrize("text", HUGE.values(), ids=list(HUGE))
def test_any_text_is_refused_at_once_in_one_short_line(text):
    begin = time.process_time()
    with pytest.raises(FoveateError) as caught:
        parse(text)
    assert time.process_time() - begin < 1
    message = str(caught.value)
    assert len(message) < 1_100 and message.isprintable()


@pytest.mark.parametrize("text", [None, 3, b"none", ["none"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(SpecError, match="a spec is a text such as"):
        parse(text)


def test_stages_without_end_are_no_plan():
    stage = parse("random(site=pre_llm, keep=0.5)").stages[0]
    with pytest.raises(PlanError, match="a plan has at most 1000"):
        as_plan(itertools.repeat(stage))


def test_an_unknown_method_lists_methods_and_recipes():
    with pytest.raises(UnknownName) as caught:
        parse("zzz(keep=0.5)")
    known = str(caught.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert set(known) == {*methods.names(), *recipes.names(), "none"}
