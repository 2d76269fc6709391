"""The real kernels on a CUDA device: SDPA, flex and flash attention, static caches and compiled steps.

Run with `pytest -m gpu`. On the CPU the same contracts are emulated in tests/engine/test_backends.py.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

import foveate
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, real

pytestmark = pytest.mark.gpu

# Flash and flex run in half precision, where one unit in the last place of a logit of size 10 is 2^-5 in bfloat16.
TOLERANCES = {"eager": 2e-3, "sdpa": 2e-3, "flex_attention": 0.25, "flash_attention_2": 0.25, "flash_attention_3": 0.25}
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
PLANS = {
    "fastv": "fastv(layer={k}, keep=0.4)",
    "two": "random(site=pre_llm, keep=0.6) | fastv(layer={k}, keep=0.5, query=text)",
}


def model_on(family: str, backend: str) -> torch.nn.Module:
    """A tiny model on the device, in the precision that the kernel runs in."""
    package = FLASH.get(backend)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    dtype = torch.float32 if backend in ("eager", "sdpa") else torch.bfloat16
    model = tiny.tiny_model(family).to("cuda", dtype)
    model.set_attn_implementation(backend)
    return model


def prompts(family: str, batch: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    return {name: value.to("cuda", dtype if value.is_floating_point() else value.dtype) for name, value in inputs.items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("backend", list(TOLERANCES))
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", list(PLANS))
def test_pruned_equals_the_dense_reference(family, backend, batch, plan):
    if "flash" in backend and family == "gemma3":
        pytest.skip("flash cannot show the tokens of a picture to each other")
    model = model_on(family, backend)
    inputs = prompts(family, batch, model.dtype)
    text = PLANS[plan].format(k=tiny.FIRST_LAYER[family])
    with torch.no_grad(), foveate.attach(model, text) as attachment:
        pruned = model(**inputs).logits.float()
        alive = [columns.cuda() for columns in alive_columns(attachment.trace, inputs)]
    model.set_attn_implementation("sdpa")
    layers = [0, tiny.FIRST_LAYER[family]][-len(alive) :]
    with torch.no_grad(), dense_reference(model, dict(zip(layers, alive, strict=True))):
        reference = model(**inputs).logits.float()
    everywhere = real(inputs)
    for columns in alive:
        everywhere = everywhere & columns
    assert float((pruned - reference)[everywhere].abs().max()) < TOLERANCES[backend]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_static_caches_with_compiled_steps_equal_dynamic_ones(family, batch):
    model = model_on(family, "sdpa")
    inputs = prompts(family, batch, model.dtype)
    with foveate.attach(model, PLANS["two"].format(k=tiny.FIRST_LAYER[family])):
        dynamic = tiny.generate(model, inputs, tokens=8)
        static = tiny.generate(model, inputs, tokens=8, cache_implementation="static")
    assert torch.equal(static.sequences, dynamic.sequences)
    assert tiny.greatest_difference(static, dynamic) < TOLERANCES["sdpa"]


@pytest.mark.parametrize("backend", list(TOLERANCES))
@pytest.mark.parametrize("batch", [1, 3])
def test_gated_steps_equal_those_of_eager_attention(backend, batch):
    model = model_on("llava", backend)
    plan = "fastv(layer=2, keep=0.5) | random_gate(layer=2, keep=0.5, recent=0)"
    with foveate.attach(model, plan):
        found = tiny.generate(model, prompts("llava", batch, model.dtype), tokens=80)  # slots are taken away on the way
    eager = model_on("llava", "eager").to(model.dtype)
    with foveate.attach(eager, plan):
        expected = tiny.generate(eager, prompts("llava", batch, model.dtype), tokens=80)
    # In half precision answers part at the first near tie; the first steps are the same.
    steps = 80 if model.dtype == torch.float32 else 8
    for one, other in zip(found.logits[:steps], expected.logits[:steps], strict=True):
        assert float((one.float() - other.float()).abs().max()) < TOLERANCES[backend]
