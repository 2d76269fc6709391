"""Invariant 6: the engine makes no N x N tensor, and pruning never needs more memory than the plain model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import foveate
from benchmarks._live_bytes import LiveBytes, observe
from foveate import families
from foveate.core.budget import Budget
from foveate.core.method import ScoreMethod
from foveate.core.plan import Stage
from foveate.core.site import Site
from foveate.core.view import TokenView
from tests import examples, tiny
from tests.trained import random_predictors

SIDE = 24  # patches: 576 visual tokens, as LLaVA-1.5 has
N = SIDE * SIDE


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """A tiny LLaVA with 576 visual tokens per image and an MLP as wide as a real small model's.

    A bounded chunk of attention rows costs a constant times the prompt; what it may cost is measured in what one layer of
    a real model needs anyway.
    """
    config = families.get("llava").tiny_config()
    config.vision_config.image_size = SIDE * config.vision_config.patch_size
    config.image_seq_length = N
    config.text_config.intermediate_size = 4096
    config.text_config.num_hidden_layers = 4
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    text = torch.arange(3, 11)
    ids = torch.cat([text, torch.full((N,), tiny.IMAGE), text])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, SIDE * 4, SIDE * 4)}


@pytest.fixture(scope="module")
def plain(wide: nn.Module, inputs: dict[str, Tensor]) -> LiveBytes:
    observe(lambda: wide(**inputs, use_cache=True), N * N)  # warm
    return observe(lambda: wide(**inputs, use_cache=True), N * N)


def test_the_helper_counts_live_bytes():
    def block() -> Tensor:
        first = torch.ones(1000)
        second = first + 1
        del first
        view = second.view(10, 100).t()
        return view.contiguous()

    seen = observe(block, 10**9)
    assert seen.peak == 8000
    assert seen.live == 0
    assert observe(lambda: torch.ones(10, 1).expand(10, 10), 100).flagged


@pytest.fixture(scope="module")
def predictors(wide: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, _ = random_predictors(tmp_path_factory.mktemp("wide"), wide, layer=tiny.FIRST_LAYER["llava"])
    return folder


FIRST = examples.first_plans()
MORE = [pytest.param(plan, marks=pytest.mark.full) for plan in (*examples.single_plans(), *examples.two_stages())]


@pytest.mark.pairs
@pytest.mark.parametrize("plan", [*FIRST, *MORE])
def test_invariant_6_no_n_by_n_tensor_and_no_more_memory_than_the_plain_model(wide, inputs, plain, predictors, plan):
    with foveate.attach(wide, examples.filled(plan, "llava", predictors)) as attachment:
        seen = observe(lambda: wide(**inputs, use_cache=True), N * N)
        assert len(attachment.trace.media[0].kept_index) < N
    extra = seen.flagged - plain.flagged
    # The MLP is wider than N, so the plain model's own activations are flagged; a pruned layer's are the same, but shorter.
    ours = {(name, shape): count for (name, shape), count in extra.items() if 4096 not in shape}
    assert not ours or any(method.pairs_at_once(N) >= N * N for method in examples.methods_in(plan)), "nobody said so"
    assert seen.peak <= plain.peak


@pytest.mark.parametrize("plan", ["fastv(layer=2, keep=0.5)"])
def test_invariant_6_a_batch_with_padding_makes_no_bigger_mask_than_the_plain_model(wide, inputs, plan):
    text = torch.arange(3, 11)
    ids = torch.stack([inputs["input_ids"][0], torch.cat([torch.zeros(N, dtype=torch.long), text, text])])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": inputs["pixel_values"]}
    plain = observe(lambda: wide(**batch, use_cache=True), N * N)
    with foveate.attach(wide, plan):
        seen = observe(lambda: wide(**batch, use_cache=True), N * N)
    largest = max((shape for _, shape in plain.flagged if 4096 not in shape), key=lambda s: torch.Size(s).numel())
    assert all(torch.Size(s).numel() <= torch.Size(largest).numel() for _, s in seen.flagged if 4096 not in s)
    assert seen.peak <= plain.peak


@dataclass(frozen=True)
class Thief(ScoreMethod):
    """Compares every token with every other one."""

    def score(self, view: TokenView) -> Tensor:
        return (view.features @ view.features.transpose(1, 2)).mean(dim=1)


def test_invariant_6_a_method_that_makes_n_by_n_is_flagged(wide, inputs, plain):
    with foveate.attach(wide, Stage(Site.llm_layer(2), Thief(), Budget.of_ratio("0.5"))):
        seen = observe(lambda: wide(**inputs, use_cache=True), N * N)
    assert (1, N, N) in {shape for _, shape in seen.flagged - plain.flagged}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_invariant_6_decoding_holds_less_than_the_plain_model(wide, inputs, plain, backend):
    wide.set_attn_implementation(backend)
    try:
        before = observe(lambda: tiny.generate(wide, inputs, tokens=4), N * N)
        with foveate.attach(wide, "fastv(layer=2, keep=0.25)"):
            seen = observe(lambda: tiny.generate(wide, inputs, tokens=4), N * N)
    finally:
        wide.set_attn_implementation("sdpa")
    assert seen.peak <= before.peak
