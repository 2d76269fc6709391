"""Oracle H: methods that break the contract are rejected, by the engine or by the checks every method goes through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import foveate
from foveate.core.budget import Budget
from foveate.core.method import TokenMethod
from foveate.core.plan import Effect, Stage
from foveate.core.selection import Selection
from foveate.core.site import Site, SiteKind
from foveate.engine import decoder
from foveate.errors import MethodError
from tests import examples, tiny
from tests.oracles import broken
from tests.spies import state_of

REFUSED = {
    broken.Unsorted: "ascending",
    broken.Repeats: "ascending without repeats",
    broken.OffByOne: "outside 0..",
    broken.TooMany: "the budget asks for",
    broken.Writes: "read only",
    broken.DoubleSource: "one target",
}
# What the engine cannot see in one call: both need a second one to compare with.
UNSEEN = {broken.Leaks: "company", broken.Forgets: "repeat"}


def stage(method: TokenMethod, site: Site | None = None, keep: str = "0.4") -> Stage:
    fixed = method.fixed_count((1, 2, 2)) is not None
    return Stage(site or Site.llm_layer(2), method, None if fixed else Budget.of_ratio(keep))


def kept_of(model: nn.Module, method: TokenMethod, inputs: dict[str, torch.Tensor], row: int) -> list[list[int]]:
    with torch.no_grad(), foveate.attach(model, stage(method)) as attachment:
        model(**inputs)
        return [entry.kept_index.tolist() for entry in attachment.trace.sample(row)]


def failures(model: nn.Module, family: str, method: TokenMethod) -> set[str]:
    """The checks every method must pass on a model: {"repeat", "company"} are those that failed."""
    maker, alone, swapped = tiny.Maker(family), tiny.Maker(family), tiny.Maker(family, seed=9)
    rows = tiny.ragged_rows(maker, 2)
    strangers = [tiny.Row([maker.text(9), swapped.picture(), maker.text(2)]), rows[1]]
    if tiny.sizes_differ(family):  # groups of one view have equal grids
        rows = [tiny.Row([maker.text(5), maker.picture(0), maker.text(7)]) for _ in range(2)]
        strangers = [tiny.Row([maker.text(9), swapped.picture(0), maker.text(2)]), rows[1]]
    together = kept_of(model, method, maker.inputs(rows), 1)
    failed = set()
    if kept_of(model, method, maker.inputs(rows), 1) != together:
        failed.add("repeat")
    for company in ([rows[1]], strangers):
        if kept_of(model, method, alone.inputs(company), len(company) - 1) != together:
            failed.add("company")
    return failed


def test_every_broken_method_is_covered():
    """By what the engine refuses, or by what two calls show; what a method costs is measured by the contract."""
    assert set(REFUSED) | set(UNSEEN) == set(broken.BROKEN)


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", REFUSED, ids=lambda method: method.__name__)
@pytest.mark.parametrize("site", [Site.pre_llm(), Site.llm_layer(2)], ids=str)
def test_the_engine_rejects(model_of, family, method, site):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    before = state_of(model)
    # An index that is off by one but in range is an answer like any other: so many stay that the last one does.
    with torch.no_grad(), foveate.attach(model, stage(method(), site, keep="0.9")):
        attached = state_of(model)
        with pytest.raises(MethodError, match=REFUSED[method]) as raised:
            model(**inputs)
        assert "\n" not in str(raised.value)
        assert "'broken'" in str(raised.value), "the message names the method"
        assert state_of(model) == attached
        with pytest.raises(MethodError):
            tiny.generate(model, inputs)
    assert state_of(model) == before


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", UNSEEN, ids=lambda method: method.__name__)
def test_the_contract_rejects(model_of, family, method):
    assert UNSEEN[method] in failures(model_of(family), family, method())


HONEST = [one for one in examples.examples(TokenMethod) if examples.acts_on_pictures(one, SiteKind.LLM_LAYER)]


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", [broken.Honest(), *HONEST], ids=str)
def test_honest_methods_pass(model_of, predictors_of, family, method):
    assert failures(model_of(family), family, examples.with_path(method, predictors_of(family))) == set()


@pytest.mark.parametrize("method", [broken.Writes, broken.Unsorted], ids=lambda method: method.__name__)
def test_inference_mode_does_not_switch_the_checks_off(model_of, method):
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    with torch.inference_mode(), foveate.attach(model, stage(method())), pytest.raises(MethodError):
        model(**inputs)


@pytest.mark.parametrize("method", [broken.Unsorted, broken.OffByOne], ids=lambda method: method.__name__)
def test_masking_checks_the_method_too(model_of, method):
    class Blind(method):
        """As broken, but ready for masking: it looks at positions only."""

        reads_features = False

        def select(self, view, keep):
            features = view.coords.float() - view.coords.float().mean(1, keepdim=True)
            return super().select(type(view)(features, view.coords, view.grid, view.sizes, view.group_keys), keep)

    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    masked = Stage(Site.llm_layer(2), Blind(), Budget.of_ratio("0.4"), effect=Effect.MASK)
    with torch.no_grad(), foveate.attach(model, masked), pytest.raises(MethodError):
        model(**inputs)


def test_the_last_stage_is_checked_on_an_accelerator_too(model_of, monkeypatch):
    # The values of an answer are checked once per stage where checking waits for the device.
    checked = []
    check = Selection.check_values
    monkeypatch.setattr(Selection, "check_values", lambda self, count: (checked.append(count), check(self, count)))
    monkeypatch.setattr(decoder, "_waits", lambda device: True)
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    with torch.no_grad(), foveate.attach(model, "random(site=pre_llm, keep=0.5) | uniform(layer=2, keep=0.5)"):
        for _ in range(3):
            model(**inputs)
    assert checked == [36, 18]
