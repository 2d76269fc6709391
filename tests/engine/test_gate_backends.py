"""Gated decoding under the emulated contracts of flash and flex attention: the answers of SDPA."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.engine import gate as gate_module
from foveate.errors import UnsupportedCombination
from tests import fake_backends, tiny
from tests.engine.test_gate import LOGITS, PLANS, answers, plan_for, prompt
from tests.fake_backends import FLASH, FLEX


@pytest.fixture(scope="module", autouse=True)
def _registered():
    fake_backends.register()


@pytest.fixture(scope="module")
def models():
    known: dict[tuple[str, str], torch.nn.Module] = {}

    def get(family: str, backend: str) -> torch.nn.Module:
        if (family, backend) not in known:
            known[family, backend] = tiny.tiny_model(family)
            fake_backends.use(known[family, backend], backend)
        return known[family, backend]

    return get


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("backend", [FLASH, FLEX])
@pytest.mark.parametrize("text", [PLANS[0], PLANS[2], PLANS[3]])
@pytest.mark.parametrize("family", tiny.FULL_ANCHORS)
def test_steps_say_the_same_under_every_backend(models, model_of, monkeypatch, family, text, backend, batch):
    monkeypatch.setattr(gate_module, "CLEAN_EVERY", 4)
    inputs, plan = prompt(family, batch), plan_for(family, text)
    with foveate.attach(model_of(family), plan):
        expected = answers(model_of(family), inputs)
    with foveate.attach(models(family, backend), plan):
        found = answers(models(family, backend), inputs)
    assert tiny.greatest_difference(found, expected) < LOGITS


@pytest.mark.full
def test_flex_reads_an_answer_at_once_and_flash_says_why_not(models, model_of):
    inputs, plan = prompt("llava"), PLANS[0].format(l=2)
    with foveate.attach(model_of("llava"), plan):
        expected = answers(model_of("llava"), inputs)
    with foveate.attach(models("llava", FLEX), plan):
        found = answers(models("llava", FLEX), inputs, use_cache=False)
    assert tiny.greatest_difference(found, expected) < LOGITS
    recent = "random_gate(layer=2, keep=0.5, recent=3)"
    with (
        foveate.attach(models("llava", FLASH), recent),
        pytest.raises(UnsupportedCombination, match="a flash mask is the same for all of them; use sdpa"),
    ):
        answers(models("llava", FLASH), inputs, use_cache=False)
