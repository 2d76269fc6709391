"""Numbers that Dynamic-LLaVA printed (arXiv:2412.00876, Tables 1 and 3), from its Eq. 13, and the KV bytes they imply."""

import pytest

from foveate.core.plan import Plan
from foveate.cost.conventions import dynamic_llava_layer_flops
from foveate.cost.estimate import estimate_cost
from foveate.cost.flops import decoder_prefill_flops
from foveate.cost.kv_bytes import kv_bytes, kv_bytes_per_slot
from tests.cost.shapes import BOTH, IMAGE, LLAMA_7B, LLAMA_13B, LLAVA_7B, LLAVA_13B, fastv, image_of, keep_count

MIB = 2**20

EQUATION_13 = [  # arriving tokens, layers below the cut, tokens behind it, TFLOPs of 7B and of 13B
    (576, 2, 576, 10.0696, 19.5991),
    (576, 2, 115, 2.4881, 4.6561),
    (576, 3, 144, 3.1958, 5.9551),  # FastV
    (576, 0, 146, 2.5194, 4.9164),  # PruMerge+
    (576, 0, 128, 2.2076, 4.3084),  # VoCo-LLaMA
    (576, 0, 115, 1.9826, 3.8696),  # HiRED
    (576, 0, 144, 2.4848, 4.8488),  # TokenPacker
    (576, 0, 64, 1.1017, 2.1508),
    (144, 3, 72, 1.3564, 2.6023),  # FastV and Dynamic-LLaVA behind TokenPacker's 144
    (144, 2, 57, 1.0749, 2.0619),
]
TABLE_1 = [(2, 1, 10.1, 19.6), (2, "0.2", 2.5, 4.7), (3, "0.25", 3.2, 6.0)]


@pytest.mark.parametrize(("arriving", "layer", "tokens", "small", "large"), EQUATION_13)
def test_equation_13_prefill(arriving, layer, tokens, small, large):
    for shape, tera in ((LLAVA_7B, small), (LLAVA_13B, large)):
        cost = estimate_cost(shape, keep_count(layer, tokens), [image_of(arriving)], 36, convention="dynamic-llava")
        assert cost.prefill_flops.plan / 1e12 == pytest.approx(tera, abs=5e-5)


@pytest.mark.parametrize(("layer", "keep", "small", "large"), TABLE_1)
def test_equation_13_to_the_printed_digit(layer, keep, small, large):
    for shape, tera in ((LLAVA_7B, small), (LLAVA_13B, large)):
        cost = estimate_cost(shape, fastv(layer, keep), [IMAGE], 0, convention="dynamic-llava")
        assert round(cost.prefill_flops.plan / 1e12, 1) == tera


def test_exact_llama_is_not_what_equation_13_counts():
    for decoder, plain, dynamic, saved in ((LLAMA_7B, 7.634, 1.880, 75.4), (LLAMA_13B, 14.888, 3.527, 76.3)):
        full = decoder_prefill_flops(decoder, [576] * decoder.layers)
        cut = decoder_prefill_flops(decoder, [576] * 2 + [115] * (decoder.layers - 2))
        assert full / 1e12 == pytest.approx(plain, abs=5e-4)
        assert cut / 1e12 == pytest.approx(dynamic, abs=5e-4)
        assert 100 * (1 - cut / full) == pytest.approx(saved, abs=0.05)


@pytest.mark.parametrize(("size", "tera"), [("7B", 2.745), ("13B", 5.356)])
def test_equation_13_decoding_is_one_pass_over_the_output(size, tera):
    """Table 3 prints 2.75 and 5.36."""
    cost = estimate_cost(BOTH[size], Plan(), [IMAGE], 36, new_tokens=159, convention="dynamic-llava")
    assert cost.decode_flops.plain == cost.decode_flops.plan
    assert cost.decode_flops.plain / 1e12 == pytest.approx(tera, abs=5e-4)


GATED_OUTPUT = [  # output tokens, how many stay behind layer 2, TFLOPs, TFLOPs as printed
    (LLAMA_7B, 159, 84, 1.528, 1.52),
    (LLAMA_13B, 159, 84, 2.951, 2.95),
    (LLAMA_7B, 351, 182, 3.329, 3.33),
    (LLAMA_13B, 351, 181, 6.389, 6.40),
]


@pytest.mark.parametrize(("decoder", "output", "kept", "tera", "printed"), GATED_OUTPUT)
def test_equation_13_with_gated_output(decoder, output, kept, tera, printed):
    """The paper prints means over samples of different lengths, hence the last digit."""
    got = gated_flops(decoder, output, kept) / 1e12
    assert got == pytest.approx(tera, abs=1e-3)
    assert got == pytest.approx(printed, abs=0.0115)


def test_equation_13_of_the_mean_length_is_below_the_printed_mean():
    """Table 3 prints 14.97 for 1555 -> 784, the mean of a convex function over samples; the mean length gives 14.68."""
    assert gated_flops(LLAMA_7B, 1555, 784) / 1e12 == pytest.approx(14.68, abs=5e-3)


def gated_flops(decoder, output, kept):
    lower, upper = (dynamic_llava_layer_flops(decoder, tokens) for tokens in (output, kept))
    return 2 * lower + (decoder.layers - 2) * upper


def test_kv_bytes_per_token():
    assert 32 * kv_bytes_per_slot(LLAMA_7B) == 512 * 1024 == 524_288
    assert 40 * kv_bytes_per_slot(LLAMA_13B) == 800 * 1024 == 819_200


@pytest.mark.parametrize(("size", "plain", "dynamic"), [("7B", 288.0, 71.9), ("13B", 450.0, 107.9)])
def test_kv_of_the_image(size, plain, dynamic):
    cost = estimate_cost(BOTH[size], fastv(2, "0.2"), [IMAGE], 0)
    assert cost.kv_bytes.plain / MIB == plain
    assert round(cost.kv_bytes.plan / MIB, 1) == dynamic


@pytest.mark.parametrize(
    ("output", "kept", "plain", "gated"), [(159, 84, 79.5, 44.3), (351, 182, 175.5, 96.3), (1555, 784, 777.5, 416.1)]
)
def test_kv_of_gated_output(output, kept, plain, gated):
    assert kv_bytes(LLAMA_7B, [output] * 32) / MIB == plain
    assert round(kv_bytes(LLAMA_7B, [output] * 2 + [kept] * 30) / MIB, 1) == gated
