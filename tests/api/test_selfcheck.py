"""A transformers that nobody tested: the self-check passes, or refuses in one line, and is remembered."""

from __future__ import annotations

import time
import warnings

import pytest

import foveate
import foveate.errors
from foveate.api import selfcheck
from foveate.engine import compat
from foveate.errors import UnsupportedModel
from tests import tiny

PLAN = "random(site=pre_llm, keep=0.5)"


@pytest.fixture
def untested(monkeypatch, tmp_path):
    """As if the installed transformers were newer than the newest tested one, in a home of its own."""
    monkeypatch.setattr(compat, "is_untested", lambda: True)
    monkeypatch.setattr(selfcheck, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr(selfcheck, "_passed", set())
    return tmp_path / "cache"


EVERY = [pytest.param(family, marks=[] if family in tiny.FAMILIES else pytest.mark.full) for family in tiny.ALL_FAMILIES]


@pytest.mark.full
@pytest.mark.parametrize("family", EVERY)
def test_every_family_passes_here_and_soon(family):
    start = time.process_time()
    assert selfcheck.failure(family) is None
    assert time.process_time() - start < 12  # under 3 s of wall time on a quiet machine


def test_the_first_attach_says_that_it_passed_and_the_next_process_remembers(untested, monkeypatch):
    model = tiny.tiny_model("llava")
    with pytest.warns(foveate.errors.FoveateWarning, match="self-check of LLaVA 1.5 passed"), foveate.attach(model, PLAN):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foveate.attach(model, PLAN).detach()
    monkeypatch.setattr(selfcheck, "_passed", set())  # another process
    monkeypatch.setattr(selfcheck, "failure", lambda name: pytest.fail("it was remembered"))
    with pytest.warns(foveate.errors.FoveateWarning, match="passed"):
        foveate.attach(model, PLAN).detach()


def test_a_renamed_keyword_is_refused_and_not_answered(untested, monkeypatch):
    monkeypatch.setattr(compat, "_CACHE_NAMES", ("store",))  # this foveate does not know what the cache is called
    model = tiny.tiny_model("llava")
    with pytest.raises(UnsupportedModel, match=r"self-check of LLaVA 1\.5 fails .*: install transformers \d+\.\d+") as refusal:
        foveate.attach(model, PLAN)
    assert "\n" not in str(refusal.value)
    assert not list(untested.rglob("*.json"))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_argument_with_another_name_is_refused(untested, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward

    def renamed(self, hidden_states, *args, rotary=None, **kwargs):
        return forward(self, hidden_states, *args, position_embeddings=rotary, **kwargs)

    call = LlamaDecoderLayer.__call__

    def calling(self, *args, position_embeddings=None, **kwargs):
        return call(self, *args, rotary=position_embeddings, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", renamed)
    monkeypatch.setattr(LlamaDecoderLayer, "__call__", calling)
    with pytest.raises(UnsupportedModel, match="self-check of LLaVA"):
        foveate.attach(tiny.tiny_model("llava"), PLAN)


def test_a_home_that_cannot_be_written_is_no_reason_to_refuse(untested):
    untested.write_text("a file where the folder would be")
    with pytest.warns(foveate.errors.FoveateWarning, match="passed"):
        foveate.attach(tiny.tiny_model("llava"), PLAN).detach()
