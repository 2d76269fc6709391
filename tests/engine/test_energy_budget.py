"""`keep=energy:`: counts follow what each picture shows, for any method, in ragged batches; and where it is refused."""

import pytest
import torch

import foveate
from foveate.errors import BudgetError, UnsupportedCombination
from tests import tiny
from tests.ops.test_energy import by_singular_values


def kept(model, plan, inputs) -> list[list[int]]:
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        model(**inputs)
        return [entry.kept_index.tolist() for entry in attachment.trace.media]


@pytest.mark.parametrize("method", ["fps", "uniform", "random"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_every_picture_keeps_what_its_own_spectrum_asks_for(model_of, family, method):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    states: list[torch.Tensor] = []
    layer = tiny.decoder_of(model).layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: states.append((*args, kwargs.get("hidden_states"))[0]), with_kwargs=True
    )
    with torch.no_grad(), foveate.attach(model, "uniform(site=pre_llm, keep=100%)") as attachment:
        model(**inputs)
        places = [(entry.medium.row, entry.medium.columns) for entry in attachment.trace.media]
    hook.remove()
    seen = set()
    for share in (0.3, 0.6, 0.9):
        counts = [len(index) for index in kept(model, f"{method}(site=pre_llm, keep=energy:{share})", inputs)]
        expected = [by_singular_values(states[0][row, columns].numpy(), share) for row, columns in places]
        assert counts == expected
        floor = [len(index) for index in kept(model, f"{method}(site=pre_llm, keep=energy:{share}, at_least=5)", inputs)]
        assert floor == [max(5, count) for count in expected]
        seen |= set(expected)
    assert len(seen) > 1


def test_a_floor_holds_for_shares_too(model_of):
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    counts = [len(index) for index in kept(model, "uniform(site=pre_llm, keep=0.1, at_least=4)", inputs)]
    assert set(counts) == {4}


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("uniform(layer=2, keep=energy:0.9, effect=mask)", "effect=mask keeps a count"),
        ("uniform(site=vision, layer=1, keep=energy:0.9)", "are for stages of the decoder"),
        ("uniform(site=vision, layer=1, keep=0.5, at_least=4)", "are for stages of the decoder"),
        ("random_gate(layer=2, keep=energy:0.9)", "needs the share of the answer"),
        ("uniform(layer=2, keep=energy:1)", "write a ratio"),
        ("uniform(layer=2, keep=energy:0)", "write a ratio"),
        ("uniform(layer=2, keep=8, at_least=4)", "a count needs no at_least"),
        ("uniform(layer=2, keep=0.5, at_least=0)", "at_least is a whole number from 1"),
        ("uniform(layer=2, keep=0.5, at_least=few)", "a whole number is expected"),
    ],
)
def test_refusals(plan, says):
    with pytest.raises(BudgetError, match=says):
        foveate.parse(plan)


def test_no_estimate_before_the_model_has_seen_the_picture():
    with pytest.raises(BudgetError, match="follows the picture"):
        foveate.estimate("llava-1.5-7b", "fps(site=pre_llm, keep=energy:0.9)")


def test_training_learns_for_a_share(model_of, predictors_of):
    plan = f"dynamic_image(layer={tiny.FIRST_LAYER['llava']}, keep=energy:0.9, path='{predictors_of('llava')}')"
    with pytest.raises(UnsupportedCombination, match="learns for a share or a count"):
        foveate.attach(model_of("llava"), plan, mode="soft")
