"""Dynamic-LLaVA's tables (arXiv:2412.00876) from plans as users write them: a picture cut before layer 2, a gate behind it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.core.plan import Plan
from foveate.cost.estimate import estimate_cost
from foveate.predictors import IMAGE, TEXT, PredictorConfig, predictor_flops, save_config
from tests.cost.shapes import BOTH
from tests.cost.shapes import IMAGE as PICTURE

MIB = 2**20
NAMES = {"7B": "llava-1.5-7b", "13B": "llava-1.5-13b"}


def estimated(size: str, keep: str | None, output: int, text_tokens: int = 56):
    """Under 115 of 576 visual tokens and a gate that stores the share `keep` of `output` tokens."""
    plan = "random(layer=2, keep=115)" + (f" | random_gate(layer=2, keep={keep})" if keep else "")
    return foveate.estimate(NAMES[size], plan, text_tokens=text_tokens, max_new_tokens=output, convention="dynamic-llava")


TABLE_3 = [  # size, output tokens, share stored, TFLOPs of one pass over the output: plain, gated, gated as printed
    ("7B", 159, "0.5283", 2.745, 1.528, 1.52),  # 84 stored
    ("13B", 159, "0.5283", 5.356, 2.951, 2.95),
    ("7B", 351, "0.5185", 6.095, 3.329, 3.33),  # 182
    ("13B", 351, "0.5157", 11.879, 6.389, 6.40),  # 181
    ("7B", 1555, "0.5042", 27.982, 14.678, 14.97),  # 784
]


@pytest.mark.parametrize(("size", "output", "keep", "plain", "gated", "printed"), TABLE_3)
def test_table_3_from_plans(size, output, keep, plain, gated, printed):
    """Printed are means over samples; Eq. 13 is convex in the length, so the mean length gives the printed number or less."""
    cost = estimated(size, keep, output)
    assert cost.prefill_flops.plan / 1e12 == pytest.approx({"7B": 2.4881, "13B": 4.6561}[size], abs=5e-5)
    assert cost.decode_flops.plain / 1e12 == pytest.approx(plain, abs=5e-4)
    assert cost.decode_flops.plan / 1e12 == pytest.approx(gated, abs=1e-3)
    assert gated == pytest.approx(printed, rel=0.02)


@pytest.mark.parametrize(("output", "printed"), [(159, 2.75), (173, 2.99), (351, 6.12), (461, 8.08), (1555, 28.70)])
def test_plain_rows_of_table_3(output, printed):
    tera = estimated("7B", None, output).decode_flops.plan / 1e12
    assert 0.97 * printed < tera < printed
    if output < 200:
        assert round(tera + 0.005, 2) >= printed >= round(tera, 2)


KV = [  # size, output tokens that were read again, share stored, MiB plain, MiB gated, saved in percent
    ("7B", 159, "0.5283", 79.5, 44.3, 44),
    ("7B", 351, "0.5185", 175.5, 96.3, 45),
    ("7B", 1555, "0.5042", 777.5, 416.1, 46),
    ("13B", 159, "0.5283", 124.2, 68.6, 45),
    ("13B", 351, "0.5157", 274.2, 148.0, 46),
]


@pytest.mark.parametrize(("size", "output", "keep", "plain", "gated", "saved"), KV)
def test_kv_of_the_output_behind_a_gate(size, output, keep, plain, gated, saved):
    """The output's part is what the cache grows by; its last token is never read again."""
    grown, prompt = (estimated(size, keep, tokens).kv_bytes for tokens in (output + 1, 1))
    assert round((grown.plain - prompt.plain) / MIB, 1) == plain
    assert round((grown.plan - prompt.plan) / MIB, 1) == gated
    assert round(100 * (1 - gated / plain)) == saved


@pytest.mark.parametrize(("size", "plain", "dynamic"), [("7B", 288.0, 71.9), ("13B", 450.0, 107.9)])
def test_kv_of_the_image_from_a_plan(size, plain, dynamic):
    with_picture = estimated(size, None, 0, 56).kv_bytes
    text = 56 * {"7B": 524_288, "13B": 819_200}[size]
    assert (with_picture.plain - text) / MIB == plain
    assert round((with_picture.plan - text) / MIB, 1) == dynamic


@pytest.mark.parametrize(("size", "percent"), [("7B", 46.875), ("13B", 47.5)])
def test_what_a_gate_saves_in_the_long_run(size, percent):
    """(1 - 2/L)(1 - r): the two layers below the gate store everything."""
    (short, long) = (estimated(size, "0.5", tokens).kv_bytes for tokens in (1, 1_000_001))
    assert 100 * (1 - (long.plan - short.plan) / (long.plain - short.plain)) == pytest.approx(percent, abs=1e-9)


@pytest.mark.parametrize(
    ("plan", "text", "output", "total"),
    [
        ("random(layer=2, keep=115) | random_gate(layer=2, keep=0.5283)", 56, 159, 255),  # LVIS, single round
        ("random(layer=2, keep=115) | random_gate(layer=2, keep=0.5157)", 205, 351, 501),  # several rounds
        ("fastv(layer=3, keep=144)", 56, 159, 359),
        ("fastv(layer=3, keep=144)", 205, 351, 700),
        ("none", 56, 159, 791),
    ],
)
def test_table_8_tokens_of_13b(plan, text, output, total):
    """Tokens of all kinds that the deep layers hold."""
    cost = foveate.estimate("llava-1.5-13b", plan, text_tokens=text, max_new_tokens=output + 1)
    per_token = 819_200 // 40
    lower = 2 if "gate" in plan else 3 if "fastv" in plan else 0
    full = 576 + text + output
    assert cost.kv_bytes.plain == 40 * full * per_token
    assert cost.kv_bytes.plan == (lower * full + (40 - lower) * total) * per_token


def predictors(hidden: int) -> PredictorConfig:
    return PredictorConfig(base_model="x", model_type="llava", hidden_size=hidden, layers=32)


@pytest.mark.parametrize(("hidden", "giga", "mega"), [(4096, 11.2, 4.5), (5120, 11.8, 5.6)])
def test_what_predictors_cost(hidden, giga, mega):
    """0.01 TFLOPs per picture in the paper, and 4.5 MFLOPs per token of an answer with 7B."""
    with torch.device("meta"):
        modules = predictors(hidden).modules()
    assert round(predictor_flops(modules[IMAGE], 576) / 1e9, 1) == giga
    assert round(predictor_flops(modules[TEXT], 1) / 1e6, 1) == mega


@pytest.mark.parametrize("name", [IMAGE, TEXT])
def test_predictors_are_counted_as_torch_counts_them(name):
    module = PredictorConfig("x", "llava", 24, 5, width=16, heads=2, feedforward=32).modules()[name]
    # Fused attention on a CPU is not counted by torch.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(torch.randn(1, 9, 24))
    assert predictor_flops(module, 9) == counter.get_total_flops()


def test_an_estimate_counts_the_predictor_among_the_choices(tmp_path):
    save_config(tmp_path, predictors(4096))
    path = f"'{tmp_path}'"
    cost = foveate.estimate("llava-1.5-7b", f"dynamic_llava(path={path})", text_tokens=56, max_new_tokens=160)
    assert cost.visual_tokens_per_layer[1][1:3] == (576, 115)
    assert round(cost.selection_flops / 1e9, 1) == 11.2
    assert cost.kv_bytes.plan == (2 * (576 + 56 + 159) + 30 * (115 + 56 + 80)) * 524_288 // 32
    two = [(640, 480)] * 2
    alone, cut = (
        foveate.estimate("llava-1.5-7b", f"{first}dynamic_image(layer=4, keep=0.2, path={path}{scope})", two).selection_flops
        for first, scope in (("", ""), ("random(layer=2, keep=0.5) | ", ""))
    )
    assert alone == 2 * cost.selection_flops
    with torch.device("meta"):
        judge = predictors(4096).modules()[IMAGE]
    assert cut == 2 * predictor_flops(judge, 288)
    joined = foveate.estimate("llava-1.5-7b", f"dynamic_image(layer=4, keep=0.2, path={path}, scope=sample)", two)
    assert joined.selection_flops == predictor_flops(judge, 1152)
    assert estimate_cost(BOTH["7B"], Plan(), [PICTURE], 36).selection_flops == 0
