"""Quantized caches store the survivors only: exact while nothing is read back, within quantization noise behind that."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from optimum.quanto.library.extensions import cpp
from transformers import QuantizedCache
from transformers.cache_utils import QuantoQuantizedLayer

import foveate
from foveate.engine import compat
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import UnsupportedCombination
from tests import tiny

LOGITS = 2e-4  # fp32 sums in another order, logits of size 10
# Tiny heads have 8 numbers each; the coarsest of these (4 bits) is off by up to this much in logits of size 10.
NOISE = {"fp8": 2.0, "quanto": 3.0}
PLAN = "random(site=pre_llm, keep=0.6) | fastv(layer=2, keep=0.4)"
FAMILIES = ("llava", "qwen2_5_vl")  # transformers quantizes full-attention caches only

BACKENDS = [
    pytest.param("fp8", marks=pytest.mark.since((5, 21), "before, there is no fp8 cache")),
    "quanto",
]


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_compiled() -> None:
    """quanto's kernel in Python: its own is compiled into its package folder, and a run that is stopped there leaves a lock
    on which all later ones wait.
    """

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([(packed >> low) & (2**bits - 1) for low in range(0, 8, bits)])

    cpp.ext._lib = SimpleNamespace(unpack=unpack)


def cache_of(model: torch.nn.Module, backend: str) -> QuantizedCache:
    options = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 8, "residual_length": 4}
    return QuantizedCache(backend=backend, config=model.config, **options)


def prompts(family: str, batch: int) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch))


@pytest.mark.pairs
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_first_token_is_exact_and_the_next_ones_are_as_far_off_as_without_a_plan(model_of, family, backend, batch):
    model, inputs = model_of(family), prompts(family, batch)

    def drift() -> tuple[float, float]:
        exact = tiny.generate(model, inputs, tokens=6)
        # The same tokens are read back, so that one early flip does not decide the rest.
        forced = {"prefix_allowed_tokens_fn": _force(exact.sequences, inputs["input_ids"].shape[1])}
        rough = tiny.generate(model, inputs, tokens=6, **{CACHE: cache_of(model, backend)}, **forced)
        steps = [float((a - b).abs().max()) for a, b in zip(exact.logits, rough.logits, strict=True)]
        return steps[0], max(steps[1:])

    plain_first, plain_later = drift()
    with foveate.attach(model, PLAN):
        first, later = drift()
    assert first < LOGITS and plain_first < LOGITS
    assert 0 < later < max(NOISE[backend], 2 * plain_later)


def _force(sequences: torch.Tensor, start: int):
    return lambda row, ids: [int(sequences[row, len(ids)])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_removed_tokens_are_never_stored(model_of, backend):
    model, inputs = model_of("llava"), prompts("llava", 1)
    with foveate.attach(model, PLAN) as attachment, torch.no_grad():
        cache = cache_in(model(**inputs, **{CACHE: cache_of(model, backend)}, use_cache=True))
        assert attachment.last.measured.prefill_kv_bytes is None, "bytes of packed integers are not known from shapes"
    assert cache.get_seq_length() == 48
    # 36 visual tokens, 22 behind the first stage, 9 behind the second; 12 of text.
    assert [layer.slots for layer in cache.layers] == [34, 34, 21, 21, 21]
    for layer in cache.layers:
        assert layer._dequantize(layer._quantized_keys).shape[2] == layer.slots


@pytest.fixture
def lossless(monkeypatch):
    """Quantization that loses nothing: what is left of the cache layers is their bookkeeping."""
    monkeypatch.setattr(QuantoQuantizedLayer, "_quantize", lambda self, tensor, axis: tensor.clone())
    monkeypatch.setattr(QuantoQuantizedLayer, "_dequantize", lambda self, stored: stored)
    if compat.FP8_LAYER is not None:
        monkeypatch.setattr(compat.FP8_LAYER, "fp8_dtype", torch.float32)
        monkeypatch.setattr(compat.FP8_LAYER, "_quantize", lambda self, tensor, scale=None: (tensor.clone(), scale))
        monkeypatch.setattr(compat.FP8_LAYER, "_dequantize", lambda self, stored: stored[0])


@pytest.mark.pairs
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "beams", [1, pytest.param(2, marks=pytest.mark.since((5, 19), "before, quantized states are not reordered"))]
)
def test_a_lossless_quantized_cache_equals_the_dynamic_one(model_of, lossless, family, backend, batch, beams):
    model, inputs = model_of(family), prompts(family, batch)
    with foveate.attach(model, PLAN):
        # Long enough for the full-precision rest to be quantized several times.
        dynamic = tiny.generate(model, inputs, tokens=14, num_beams=beams)
        answer = tiny.generate(model, inputs, tokens=14, num_beams=beams, **{CACHE: cache_of(model, backend)})
    assert torch.equal(answer.sequences, dynamic.sequences)
    assert tiny.greatest_difference(answer, dynamic) < LOGITS


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_quantized_cache_cannot_do_is_refused(model_of, backend):
    model, inputs = model_of("llava"), prompts("llava", 1)
    with foveate.attach(model, PLAN), torch.no_grad():
        cache = cache_in(model(**inputs, **{CACHE: cache_of(model, backend)}, use_cache=True))
    with pytest.raises(UnsupportedCombination, match="use a dynamic cache"):
        cache.crop(-2)
    with pytest.raises(UnsupportedCombination, match="use a dynamic cache"):
        cache.layers[3].evict(torch.ones(1, 21, dtype=torch.bool))
