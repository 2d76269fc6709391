"""Attaching and detaching: many threads, shared modules, odd arguments, copies, caches by name."""

from __future__ import annotations

import io
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import torch

import foveate
from foveate.engine.compat import cache_in
from foveate.errors import AttachError, InputError, UnsupportedCombination
from tests import tiny
from tests.engine.prompts import FASTV, MODELS, prompt
from tests.tiny import Maker, Row, tiny_model


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_of_many_threads_one_attaches_and_nothing_is_left():
    model = tiny_model("llava")
    before = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    attached: list[Any] = []

    def run() -> None:
        with suppress(AttachError):
            attached.append(foveate.attach(model, FASTV.format(layer=2)))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attached) == 1
    attached[0].detach()
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()] == before
    assert "generate" not in vars(model)


def test_models_that_share_modules_carry_one_plan():
    model, other = tiny_model("llava"), tiny_model("llava", seed=1)
    other.model = model.model
    with foveate.attach(model, FASTV.format(layer=2)), pytest.raises(AttachError, match="shares modules with another"):
        foveate.attach(other, FASTV.format(layer=2))
    foveate.attach(other, FASTV.format(layer=2)).detach()


def test_detaching_waits_for_the_calls_of_other_threads():
    model, inputs, failures = MODELS["llava", "sdpa"], prompt(), []
    plan = "random(site=vision, layer=1, keep=0.5) | fastv(layer=2, keep=0.5)"
    with foveate.attach(model, plan):
        wanted = tiny.generate(model, inputs).sequences
    for _ in range(5):
        attachment, started = foveate.attach(model, plan), threading.Event()

        def run(started: threading.Event = started) -> None:
            try:
                started.set()
                if not torch.equal(tiny.generate(model, inputs).sequences, wanted):
                    failures.append("another answer")
            except Exception as error:
                failures.append(repr(error))

        thread = threading.Thread(target=run)
        thread.start()
        started.wait()
        time.sleep(0.02)
        attachment.detach()
        thread.join()
    assert not failures


def test_the_plan_of_a_running_forward_call_cannot_be_changed():
    model, inputs, seen = MODELS["llava", "sdpa"], prompt(), []
    with foveate.attach(model, FASTV.format(layer=2)) as attachment:

        def detach(*_: Any) -> None:
            with pytest.raises(AttachError, match="a forward call of the model is running"):
                attachment.detach()
            seen.append(True)

        handle = model.get_submodule("model.language_model.layers.3").register_forward_hook(detach)
        model(**inputs)
        handle.remove()
    assert seen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_traces": 10**30}, "a whole number from 1 to"),
        ({"keep_traces": True}, "a whole number from 1 to"),
        ({"modules": 3}, "modules is a dict"),
        ({"modules": {"nosuch": torch.nn.Linear(1, 1)}}, "which is no learned method"),
    ],
)
def test_odd_arguments_of_attach_are_one_line(options, words):
    with pytest.raises(AttachError, match=words) as refusal:
        foveate.attach(MODELS["llava", "sdpa"], FASTV.format(layer=2), **options)
    assert "\n" not in str(refusal.value)


def test_wrapped_copied_and_pickled_models_are_told_what_to_do():
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    model = MODELS["llava", "sdpa"]
    with pytest.raises(AttachError, match="attach to the model first, then wrap it"):
        foveate.attach(Wrapper(model), FASTV.format(layer=2))
    with foveate.attach(model, FASTV.format(layer=2)), pytest.raises(AttachError, match="detach it before copying or pickling"):
        torch.save(model, io.BytesIO())


def test_a_mask_that_hides_a_picture_is_named():
    model, maker = MODELS["llava", "sdpa"], Maker("llava")
    inputs = maker.inputs([Row([maker.text(5), maker.picture(), maker.text(3), maker.picture(), maker.text(7)])])
    inputs["attention_mask"][0, 5:41] = 0
    with foveate.attach(model, FASTV.format(layer=2)), pytest.raises(InputError, match="attention_mask hides 36 placeholder"):
        model(**inputs)


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_caches_that_cannot_be_pruned_name_some_that_can(kind):
    model, inputs = MODELS["llava", "sdpa"], prompt()
    with foveate.attach(model, FASTV.format(layer=2)):
        with pytest.raises(UnsupportedCombination, match="use dynamic, static, quantized"):
            tiny.generate(model, inputs, cache_implementation=kind)
        for valid in ("dynamic", "static"):
            tiny.generate(model, inputs, tokens=2, cache_implementation=valid)


def test_a_text_only_answer_under_a_gate_has_its_bytes_measured():
    model = MODELS["llava", "sdpa"]
    text = {"input_ids": Maker("llava").text(9)[None]}
    with foveate.attach(model, "random_gate(layer=2, keep=0.5, recent=0)") as attachment:
        answer = tiny.generate(model, text)
        assert attachment.report().prefill_kv_bytes
        assert cache_in(answer) is not None
