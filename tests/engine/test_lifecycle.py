"""Attaching, switching and detaching: nothing is left behind, whatever happens in between."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from foveate.engine import forward, observe
from foveate.errors import AttachError, FoveateError
from tests import tiny
from tests.oracles.dense_reference import decoder_layers
from tests.spies import settled_state, state_of

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
FASTV = "fastv(layer=2, keep=0.4)"


def prompts(family: str, batch: int = 3) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch))


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))


@every_family
def test_disabled_is_bit_identical_and_leaves_no_hook(model_of, family):
    model, inputs = model_of(family), prompts(family)
    plain, before = tiny.generate(model, inputs), state_of(model)
    with foveate.attach(model, FASTV) as attachment:
        pruned, attached = tiny.generate(model, inputs), state_of(model)
        with attachment.disabled():
            assert state_of(model) == before
            assert same(tiny.generate(model, inputs), plain)
        assert state_of(model)["attributes"] == attached["attributes"]
        assert same(tiny.generate(model, inputs), pruned)
    assert state_of(model) == before
    assert not same(pruned, plain)


def test_disabled_may_be_nested_and_may_detach(model_of):
    model, inputs = model_of("llava"), prompts("llava")
    before = state_of(model)
    with foveate.attach(model, FASTV) as attachment:
        hooks = count_hooks(model)
        pruned = tiny.generate(model, inputs)
        with attachment.disabled():
            with attachment.disabled():
                pass
            assert state_of(model) == before
            with attachment.using("uniform(layer=2, keep=0.5)"):
                assert state_of(model) != before
            assert state_of(model) == before
        assert count_hooks(model) == hooks
        assert same(tiny.generate(model, inputs), pruned)
        with attachment.disabled():
            attachment.detach()
        assert state_of(model) == before
    with foveate.attach(model, FASTV) as attachment:
        with attachment.using("none"):
            attachment.detach()
        assert state_of(model) == before


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_using_another_plan_and_back(model_of):
    model, inputs = model_of("llava"), prompts("llava")
    answers = {}
    for plan in (FASTV, "uniform(layer=3, keep=0.25)"):
        with foveate.attach(model, plan):
            answers[plan] = tiny.generate(model, inputs)
    plain = tiny.generate(model, inputs)
    with foveate.attach(model, FASTV) as attachment:
        with attachment.using("uniform(layer=3, keep=0.25)") as same_one:
            assert same_one is attachment
            assert str(attachment.plan) == "uniform(layer=3, keep=0.25)"
            assert same(tiny.generate(model, inputs), answers["uniform(layer=3, keep=0.25)"])
            with attachment.using("none"):
                assert same(tiny.generate(model, inputs), plain)
        assert str(attachment.plan) == FASTV
        assert same(tiny.generate(model, inputs), answers[FASTV])
        with pytest.raises(FoveateError, match="5 decoder layers"), attachment.using("fastv(layer=9, keep=0.5)"):
            pass
        assert same(tiny.generate(model, inputs), answers[FASTV])
        with pytest.raises(ZeroDivisionError), attachment.using("uniform(layer=3, keep=0.25)"):
            _ = 1 / 0
        assert same(tiny.generate(model, inputs), answers[FASTV])


def test_two_models_carry_two_plans_and_may_call_each_other(model_of):
    llava, gemma = model_of("llava"), model_of("gemma3")
    first, second = prompts("llava"), prompts("gemma3")
    with foveate.attach(llava, FASTV):
        expected = tiny.generate(llava, first)
    with foveate.attach(gemma, "uniform(layer=2, keep=0.5)"):
        inner_expected = tiny.generate(gemma, second)
    inner = []
    with foveate.attach(llava, FASTV), foveate.attach(gemma, "uniform(layer=2, keep=0.5)"):
        handle = decoder_layers(llava)[3].register_forward_pre_hook(
            lambda *_: inner.append(tiny.generate(gemma, second, tokens=6))
        )
        outer = tiny.generate(llava, first)
        handle.remove()
    assert same(outer, expected)
    assert all(same(answer, inner_expected) for answer in inner)


def test_two_models_in_two_threads_do_not_mix():
    models = {family: tiny.tiny_model(family) for family in ("llava", "qwen2_5_vl")}
    plans = {"llava": FASTV, "qwen2_5_vl": "random(site=pre_llm, keep=0.6) | fastv(layer=2, keep=0.5, query=text)"}
    inputs = {family: prompts(family) for family in models}
    expected, answers, errors = {}, {}, []
    for family, model in models.items():
        with foveate.attach(model, plans[family]):
            expected[family] = tiny.generate(model, inputs[family])
    barrier = threading.Barrier(2)

    def work(family: str) -> None:
        try:
            torch.set_num_threads(1)
            for _ in range(3):
                barrier.wait(timeout=30)
                with foveate.attach(models[family], plans[family]):
                    answers.setdefault(family, []).append(tiny.generate(models[family], inputs[family]))
        except Exception as error:  # a thread would swallow it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(family,)) for family in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(same(answer, expected[family]) for family in models for answer in answers[family])


class Boom(Exception):
    """Raised on purpose."""


# Where a call may be cut off: inside the watched attention, in front of its attention function; and behind the cut.
PLACES = {"watched attention": "1.self_attn.q_proj", "pruned layer": "3.mlp"}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "llava" else pytest.mark.full) for name in tiny.FAMILIES]
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("through_generate", [True, False])
def test_an_interrupted_call_leaves_nothing_behind(model_of, family, place, error, through_generate):
    model, inputs, others = model_of(family), prompts(family), prompts(family, 1)
    before = state_of(model)
    with foveate.attach(model, FASTV) as attachment:
        expected, attached = tiny.generate(model, others), state_of(model)

        def fail(*_):
            raise error

        handle = decoder_layers(model).get_submodule(PLACES[place]).register_forward_pre_hook(fail)
        labels = {} if through_generate else {"labels": inputs["input_ids"]}
        with pytest.raises(error):
            tiny.generate(model, inputs) if through_generate else model(**inputs, **labels)
        handle.remove()
        if through_generate or error is Boom:
            # torch runs no hooks behind a KeyboardInterrupt: a bare forward is tidied up by the next one.
            assert state_of(model) == attached
        assert same(tiny.generate(model, others), expected)
        assert state_of(model) == attached
        handle = decoder_layers(model).get_submodule(PLACES[place]).register_forward_pre_hook(fail)
        with pytest.raises(error):
            model(**inputs)
        handle.remove()
    assert state_of(model) == before
    assert forward.current(attachment) is None


def test_attaching_twice_is_refused_and_detaching_twice_does_nothing(model_of):
    model = model_of("llava")
    before = state_of(model)
    attachment = foveate.attach(model, FASTV)
    with pytest.raises(AttachError, match=r"already carries the plan 'fastv\(layer=2, keep=0.4\)'"):
        foveate.attach(model, "uniform(layer=2, keep=0.5)")
    assert attachment.is_attached
    attachment.detach()
    attachment.detach()
    assert not attachment.is_attached
    for block in (attachment.disabled, lambda: attachment.using(FASTV), attachment.conversation):
        with pytest.raises(AttachError, match=r"call foveate\.attach again"), block():
            pass
    assert state_of(model) == before
    assert attachment not in observe._users
    # Transformers knows the probe as long as somebody needs it; other tests may have left a model with a plan behind.
    assert (observe.PROBE in ALL_ATTENTION_FUNCTIONS) is bool(observe._users)
    with foveate.attach(model, FASTV):
        other = foveate.attach(model_of("gemma3"), FASTV)
        attachment.detach()  # an old attachment does not take the new one away
        assert count_hooks(model) > 0
        other.detach()
        assert observe.PROBE in ALL_ATTENTION_FUNCTIONS


def test_an_attached_model_is_freed_like_any_other():
    model = tiny.tiny_model("llava")
    attachment = foveate.attach(model, FASTV)
    tiny.generate(model, prompts("llava"), tokens=2)
    gone = weakref.ref(model)
    del model, attachment
    gc.collect()
    assert gone() is None


def test_a_plan_stays_although_nobody_holds_its_attachment():
    model, inputs = tiny.tiny_model("llava"), prompts("llava")
    plain = tiny.generate(model, inputs)
    foveate.attach(model, FASTV)
    gc.collect()
    assert not same(tiny.generate(model, inputs), plain)
    with pytest.raises(AttachError, match="already carries"):
        foveate.attach(model, FASTV)


def test_another_wrapper_of_generate_survives(model_of):
    model, calls = model_of("llava"), []
    generate = model.generate

    def mine(*args, **kwargs):
        calls.append(1)
        return generate(*args, **kwargs)

    model.generate = mine
    try:
        with foveate.attach(model, FASTV) as attachment:
            tiny.generate(model, prompts("llava"), tokens=1)
            with attachment.disabled():
                assert model.generate is mine
        assert model.generate is mine
        assert calls == [1]
    finally:
        del model.generate


def test_a_compiled_model_is_refused():
    model = tiny.tiny_model("llava")
    with pytest.raises(AttachError, match="attach first, compile afterwards"):
        foveate.attach(torch.compile(model, backend="eager"), FASTV)
    part = decoder_layers(model)[2]
    part.compile(backend="eager")
    with pytest.raises(AttachError, match="attach first, compile afterwards"):
        foveate.attach(model, FASTV)
    part._compiled_call_impl = None
    model.compile(backend="eager")
    with pytest.raises(AttachError, match="attach first, compile afterwards"):
        foveate.attach(model, FASTV)


class Adapter(nn.Module):
    """What PeftModel looks like from outside: a module around a module, with get_base_model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model
        self.config = SimpleNamespace(model_type="peft")

    def get_base_model(self) -> nn.Module:
        return self.base_model


def test_wrappers_are_unwrapped(model_of):
    model = model_of("llava")
    for wrapper in (Adapter(model), SimpleNamespace(model=model), SimpleNamespace(model=Adapter(model))):
        with foveate.attach(wrapper, FASTV) as attachment:
            assert attachment.model is model
    for nothing in (None, "llava", SimpleNamespace(model="llava"), nn.Linear(2, 2)):
        with pytest.raises(AttachError, match="attach takes"):
            foveate.attach(nothing, FASTV)


@every_family
def test_a_dispatched_model_gives_the_same_answer(model_of, family):
    accelerate = pytest.importorskip("accelerate")
    inputs = prompts(family)
    with foveate.attach(model_of(family), FASTV):
        expected = tiny.generate(model_of(family), inputs)
    # Every part on the CPU, but with the hooks that a model spread over devices has: forward is replaced everywhere.
    model = tiny.tiny_model(family)
    parts = dict.fromkeys(("lm_head", "model"), "cpu")
    model = accelerate.dispatch_model(model, parts, main_device="cpu", force_hooks=True)
    before = settled_state(model, inputs)
    with foveate.attach(model, FASTV):
        assert same(tiny.generate(model, inputs), expected)
    assert state_of(model)["hooks"] == before["hooks"]
