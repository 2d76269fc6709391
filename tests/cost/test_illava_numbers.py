"""Counts of the program of iLLaVA's authors (arXiv:2412.06263v1), which follow from its rules without any weights.

Text tokens: 54 with LLaVA-OneVision, 30 with Qwen2-VL.
"""

import pytest

import foveate
from foveate import families
from foveate.api import resolve_config
from foveate.core.shape import MediumShape
from foveate.cost.estimate import estimate_cost
from foveate.cost.flops import decoder_prefill_flops
from foveate.errors import PlanError, UnsupportedCombination
from foveate.spec import parse

IMAGE, VIDEO = "illava(preset=onevision-image)", "illava(preset=onevision-video)"
EIGHTY = "illava(variant=v1, vit_layers=2..8, vit_keep=[649, 569, 489, 409, 329, 249, 169])"
ONE_CROP = MediumShape("image", (1, 27, 27), separators=(729,), encoder_tokens=729, encoder_sequences=(729,))
ONEVISION = families.get("llava_onevision").model_shape(resolve_config("llava-onevision-7b"))


def v1(model, plan, **workload):
    return foveate.estimate(model, plan, convention="illava-v1", max_new_tokens=0, **workload)


def onevision(plan, **workload):
    return v1("llava-onevision-7b", plan, text_tokens=54, **workload)


def of_one_crop(plan):
    return estimate_cost(ONEVISION, parse(plan), [ONE_CROP], 54, convention="illava-v1")


def steps(tokens):
    """What arrives, and every number that follows."""
    return [count for layer, count in enumerate(tokens) if layer == 0 or count != tokens[layer - 1]]


def slots(cost, model):
    """Tokens of the KV cache, summed over the layers; plain and plan."""
    decoder = resolve_config(model).get_text_config()
    each = 2 * 2 * decoder.num_key_value_heads * (decoder.hidden_size // decoder.num_attention_heads)
    return cost.kv_bytes.plain / each, cost.kv_bytes.plan / each


def test_blocks_of_siglip_and_the_cut_of_the_llm():
    cost = of_one_crop(IMAGE)
    assert list(cost.encoder_tokens[0]) == [729] * 26
    assert list(cost.encoder_tokens[1]) == [729] * 6 + [637, 545, 453] + [361] * 17
    # The newline behind a lone crop is not ranked.
    assert steps(cost.visual_tokens_per_layer[1]) == [361 + 1, 253 + 1]
    assert cost.visual_tokens_per_layer[1].index(254) == 8
    assert steps(of_one_crop(EIGHTY).encoder_tokens[1])[-1] == 169


@pytest.mark.parametrize(
    ("plan", "giga", "ratio"),
    [("none", 640.814, 1), (IMAGE, 391.629, 0.6111), (VIDEO, 365.522, 0.5704), (EIGHTY, 240.674, 0.3756)],
)
def test_flops_of_siglip(plan, giga, ratio):
    encoder = of_one_crop(plan).encoder_flops
    assert round(encoder.plan / 1e9, 3) == giga
    assert round(encoder.ratio.plan, 4) == ratio


ANYRES = [  # pixels, crops with the overview, tokens of the plain model, behind the encoder, behind the LLM's stage
    ((384, 384), 2, 1485, 741, 519),
    ((640, 480), 5, 2929, 1453, 1017),
    ((672, 672), 5, 3699, 1843, 1290),
    ((1024, 768), 7, 4725, 2337, 1636),
    ((1280, 720), 9, 5967, 2983, 2088),
    ((1920, 1080), 16, 7269, 3595, 2516),
    ((2048, 2048), 37, 7371, 3667, 2567),
]


@pytest.mark.parametrize(("size", "crops", "plain", "square", "left"), ANYRES)
def test_anyres_tokens_of_the_square_grid(size, crops, plain, square, left):
    cost = onevision(IMAGE, images=[size])
    assert cost.encoder_tokens[0][0] == crops * 729
    assert cost.encoder_tokens[1][-1] == crops * 361
    assert set(cost.visual_tokens_per_layer[0]) == {plain}
    assert list(cost.visual_tokens_per_layer[1]) == [square] * 8 + [left] * 20


@pytest.mark.parametrize(("size", "crops", "plain", "square", "left"), ANYRES)
def test_the_plain_model_has_the_tokens_that_the_engine_counts(size, crops, plain, square, left):
    exact = foveate.estimate("llava-onevision-7b", "none", images=[size])
    assert exact.visual_tokens_per_layer[0][0] == plain
    assert exact.encoder_tokens[0][0] == crops * 729


def test_tokens_of_a_video():
    cost = onevision(VIDEO, images=[(640, 360)], frames=32)
    assert set(cost.visual_tokens_per_layer[0]) == {6273}
    assert list(cost.visual_tokens_per_layer[1]) == [3201] * 2 + [2240 + 1] * 26
    assert cost.encoder_tokens[1][-1] == 32 * 361


def test_theory_of_an_image():
    cost = onevision(IMAGE, images=[(1024, 768)])
    assert [round(n / 1e12, 3) for n in (cost.encoder_flops.plain, cost.encoder_flops.plan)] == [4.486, 2.741]
    assert [round(n / 1e12, 3) for n in (cost.llm_prefill_flops.plain, cost.llm_prefill_flops.plan)] == [71.536, 26.144]
    assert round(cost.prefill_flops.ratio.plan, 3) == 0.380
    assert slots(cost, "llava-onevision-7b") == (133_812, 52_928)
    assert round(cost.kv_bytes.ratio.plan, 3) == 0.396


def test_theory_of_one_crop():
    cost = of_one_crop(IMAGE)
    assert round(cost.prefill_flops.plain / 1e12, 3) == 11.119
    # 4.851 and 0.436 are often quoted: they follow when the newline is ranked too, 362 -> 253. The program leaves it out.
    ranked = cost.encoder_flops.plan + decoder_prefill_flops(ONEVISION.decoder, [362 + 54] * 8 + [253 + 54] * 20)
    assert (round(ranked / 1e12, 3), round(ranked / cost.prefill_flops.plain, 3)) == (4.851, 0.436)
    assert round(cost.prefill_flops.plan / 1e12, 3) == 4.861
    assert round(cost.prefill_flops.ratio.plan, 3) == 0.437


def test_theory_of_a_video():
    cost = onevision(VIDEO, images=[(640, 360)], frames=32)
    assert round(cost.prefill_flops.plain / 1e12, 3) == 119.146
    assert round(cost.prefill_flops.plan / 1e12, 3) == 44.810
    assert round(cost.prefill_flops.ratio.plan, 3) == 0.376
    assert round(cost.kv_bytes.ratio.plan, 3) == 0.374


QWEN2 = [  # pixels, patches behind each merge, tokens behind the encoder and behind each stage of the LLM
    ((224, 224), [256, 216, 184, 156, 132], [33, 30, 27, 24]),
    ((448, 448), [1024, 864, 728, 612, 516], [129, 116, 104, 94]),
    ((896, 896), [4096, 3444, 2896, 2436, 2048], [512, 461, 415, 374]),
    ((1120, 896), [5120, 4304, 3616, 3040, 2556], [639, 575, 518, 466]),
    ((1792, 1792), [16384, 13764, 11564, 9716, 8164], [2041, 1837, 1653, 1488]),
]


@pytest.mark.parametrize(("size", "inside", "behind"), QWEN2)
def test_qwen2_vl(size, inside, behind):
    plan = "illava(preset=qwen2-vl-7b)"
    cost = v1("qwen2-vl-7b", plan, images=[size])
    assert steps(cost.encoder_tokens[1]) == inside
    assert steps(cost.visual_tokens_per_layer[1]) == behind
    # The engine, which decides on whole squares of patches in true places, has the same counts here.
    exact = foveate.estimate("qwen2-vl-7b", plan, images=[size])
    assert exact.encoder_tokens == cost.encoder_tokens
    assert exact.visual_tokens_per_layer == cost.visual_tokens_per_layer


@pytest.mark.parametrize(
    ("size", "encoder", "llm", "total", "kv"),
    [((1120, 896), 0.659, 0.402, 0.499, 0.411), ((448, 448), 0.700, 0.462, 0.528, None)],
)
def test_theory_of_qwen2_vl(size, encoder, llm, total, kv):
    cost = v1("qwen2-vl-7b", "illava(preset=qwen2-vl-7b)", images=[size], text_tokens=30)
    assert round(cost.encoder_flops.ratio.plan, 3) == encoder
    assert round(cost.llm_prefill_flops.ratio.plan, 3) == llm
    assert round(cost.prefill_flops.ratio.plan, 3) == total
    assert kv is None or round(cost.kv_bytes.ratio.plan, 3) == kv


@pytest.mark.parametrize(
    ("vit", "inside", "llm", "behind"),
    [
        ("0.85", [4096, 3480, 2956, 2512, 2132], "0.9", [1024, 922, 830, 747, 672]),
        ("0.9", [4096, 3684, 3316, 2984, 2684], "0.85", [1024, 870, 739, 628, 534]),
    ],
)
def test_qwen3_vl_nominal(vit, inside, llm, behind):
    """The released program brings back whole groups behind the merge, so that fewer tokens go than these."""
    encoder = v1("qwen3-vl-8b", f"illava(vit_layers=5..8, vit_keep=[{vit}, {vit}, {vit}, {vit}])", images=[(1024, 1024)])
    assert steps(encoder.encoder_tokens[1]) == inside
    plan = f"illava(llm_layers=[19, 21, 23, 25], llm_keep=[{llm}, {llm}, {llm}, {llm}])"
    decoder = v1("qwen3-vl-8b", plan, images=[(1024, 1024)])
    assert steps(decoder.visual_tokens_per_layer[1]) == behind


def test_what_the_program_cannot_do_is_refused():
    with pytest.raises(UnsupportedCombination, match="keep 361 or 400 patches"):
        onevision("illava_v1(site=vision, layer=6, keep=365)", images=[(1024, 768)])
    with pytest.raises(PlanError, match="the encoder has 26 layers"):
        onevision("illava_v1(site=vision, layer=26, keep=361)", images=[(1024, 768)])
    with pytest.raises(UnsupportedCombination, match="pool fixes its own count"):
        onevision("pool(site=pre_llm)", images=[(1024, 768)])
