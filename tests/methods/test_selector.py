"""The selector against plain loops, at every budget, in company and alone, and on the model it was trained for alone."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.core.view import Question, TokenView
from foveate.errors import InputError, PlanError, SpecError
from foveate.methods.selector import Selector
from foveate.predictors import PredictorConfig, Scorer, read_config, save_predictors, scorer_flops
from tests import tiny
from tests.marks import one_and_more
from tests.oracles.selector import selector_kept
from tests.trained import random_predictors

HIDDEN, HEADS, BLOCKS = 12, 2, 2
QUERIES = ("none", "text")


def scorer(query: str, seed: int = 0) -> Scorer:
    torch.manual_seed(seed)
    module = Scorer(HIDDEN, 8, HEADS, 16, BLOCKS, question=query == "text")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.double().eval()


def view(module: Scorer, groups: int = 3, count: int = 11, seed: int = 1) -> TokenView:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(groups, count, HIDDEN, dtype=torch.double, generator=generator)
    asked = {Question(): torch.randn(groups, HIDDEN, generator=generator)}
    return TokenView(
        tokens, torch.zeros(groups, count, 3).long(), None, torch.ones(groups, count), tuple(range(groups)), asked, module
    )


@pytest.mark.parametrize("query", QUERIES)
def test_the_choice_is_the_twin_s(query):
    module = scorer(query)
    shown, method = view(module), Selector(query=query)
    for keep in (1, 4, 11):
        kept = method.select(shown, keep).kept
        for group in range(3):
            question = shown.observe(Question())[group].double() if query == "text" else None
            twin = selector_kept(module.state_dict(), list(shown.features[group]), HEADS, BLOCKS, question, keep)
            assert kept[group].tolist() == twin


@pytest.mark.parametrize("query", QUERIES)
def test_a_smaller_budget_keeps_some_of_what_a_larger_one_keeps(query):
    shown, before = view(scorer(query), count=40), None
    for keep in range(40, 0, -1):
        kept = [set(group) for group in Selector(query=query).select(shown, keep).kept.tolist()]
        assert before is None or all(small < large for small, large in zip(kept, before, strict=True))
        before = kept


def test_the_question_changes_the_choice_and_the_picture_alone_does_not_see_it():
    shown = view(scorer("text"))
    other = TokenView(**{**vars(shown), "observed": {Question(): -shown.observe(Question())}})
    choices = [Selector(query="text").select(one, 4).kept for one in (shown, other)]
    assert not torch.equal(*choices)
    assert Selector().needs() == () and Selector(query="text").needs() == (Question(),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of random scorers for each family's tiny model."""
    known: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in known:
            known[family], _ = random_predictors(tmp_path_factory.mktemp(family), tiny.tiny_model(family))
        return known[family]

    return get


def kept_of(model, inputs, plan: str) -> list[list[list[int]]]:
    """The kept tokens of each picture, by row."""
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        model(**inputs)
        if not any(name.startswith("pixel_values") for name in inputs):
            return [[]]
        rows = range(inputs["input_ids"].shape[0])
        return [[entry.kept_index.tolist() for entry in attachment.trace.sample(row)] for row in rows]


@pytest.mark.parametrize("query", one_and_more(["text", "none"]))
@pytest.mark.parametrize("family", one_and_more(tiny.FAMILIES))
def test_a_row_alone_is_chosen_from_as_in_a_batch_at_every_scope(trained, family, query):
    model, maker = tiny.tiny_model(family), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    for scope in ("medium", "sample", "crop", "frame"):
        plan = f"selector(site=pre_llm, keep=0.4, query={query}, scope={scope}, path='{trained(family)}')"
        together = kept_of(model, maker.inputs(rows, "left"), plan)
        alone = [kept_of(model, tiny.Maker(family).inputs([row]), plan)[0] for row in rows]
        assert together == alone and any(together)


def labelled(inputs: dict[str, torch.Tensor], answer: int) -> dict[str, torch.Tensor]:
    """The last `answer` columns as those of a training row's answer."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -answer:] = inputs["input_ids"][:, -answer:]
    return {**inputs, "labels": labels}


def test_the_question_is_the_prompt_s_text_and_never_the_answer(trained):
    model, maker = tiny.tiny_model("llava"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    plan = f"selector(site=pre_llm, keep=0.3, query=text, path='{trained('llava')}')"
    ids = inputs["input_ids"]
    text = ids.clone()
    text[:, -2:] = ids[:, -4:-2]  # other words where the answer stands
    seen = []
    for given in (ids, text):
        with torch.no_grad(), foveate.attach(model, plan) as attachment:
            module = next(iter(attachment.modules.values()))
            handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
            model(**labelled({**inputs, "input_ids": given}, 2))
            handle.remove()
    assert torch.equal(*seen)
    states = model.get_input_embeddings()(ids)[0]
    placeholder = int(model.config.image_token_id)
    last = int((ids[0] == placeholder).nonzero().max())
    torch.testing.assert_close(seen[0][0], states[last + 1 : -2].mean(0))


def test_another_base_is_refused_and_so_is_what_was_not_trained(trained, tmp_path):
    model = tiny.tiny_model("llava")
    other, _ = random_predictors(tmp_path / "other", tiny.tiny_model("llava", seed=7))
    for query in QUERIES:
        plan = f"selector(site=pre_llm, keep=0.5, query={query}, path='{other}'"
        with pytest.raises(InputError, match=r"whose weights are not those of this model.*allow_mismatch=on"):
            foveate.attach(model, plan + ")")
        foveate.attach(model, plan + ", allow_mismatch=on)").detach()
    alone = PredictorConfig(**{**vars(read_config(trained("llava"))), "selectors": ("selector",), "layer": 0} | ALONE)
    save_predictors(tmp_path / "alone", alone, alone.modules())
    foveate.attach(model, f"selector(site=pre_llm, keep=0.5, path='{tmp_path / 'alone'}')").detach()
    with pytest.raises(InputError, match="holds no question_selector: it was trained without; it holds selector"):
        foveate.attach(model, f"selector(site=pre_llm, keep=0.5, query=text, path='{tmp_path / 'alone'}')")
    with pytest.raises(InputError, match="holds no predictor for pictures inside the model"):
        foveate.parse(f"dynamic_llava(path='{tmp_path / 'alone'}', text=off)")


ALONE = {"image": False, "text_keep": None, "instruct_keep": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": 0}, "layer is a whole number from 1 to 1,000, not 0"),
        ({"selectors": ("mine",)}, "selectors is a list of selector and question_selector"),
        ({"selectors": ("selector", "selector")}, "each once at most"),
        ({"image": 1}, "image is true or false, not 1"),
    ],
)
def test_a_file_that_describes_no_scorers_is_refused(trained, changes, said):
    with pytest.raises(InputError, match=said):
        PredictorConfig(**{**vars(read_config(trained("llava"))), **changes})


def test_it_acts_in_front_of_the_language_model_alone():
    with pytest.raises(PlanError, match="selector"):
        foveate.parse("selector(layer=2, keep=0.5)")
    with pytest.raises(SpecError, match="allowed are none and text"):
        foveate.parse("selector(site=pre_llm, keep=0.5, query=last)")


@pytest.mark.parametrize("query", QUERIES)
def test_its_flops_are_those_of_its_matrix_products(query):
    module, count = scorer(query), 37
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        module(torch.zeros(1, count, HIDDEN).double(), torch.zeros(1, HIDDEN).double())
    assert scorer_flops(module, count) == counter.get_total_flops()
