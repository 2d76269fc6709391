"""The exact count against torch's FlopCounterMode on tiny random models under eager attention, and KV bytes off real caches."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    SiglipVisionConfig,
)

from foveate.core.plan import Plan
from foveate.core.shape import DecoderShape, EncoderShape, LinearShape, MediumShape, ModelShape
from foveate.cost.estimate import estimate_cost
from foveate.engine.compat import CACHE, cache_in

TOLERANCE = 1e-3  # agrees to the last FLOP today; some versions build rotary tables with matrix products
IMAGE_ID, TEXT, STEPS = 90, 40, 6
TEXT_CONFIG = {"vocab_size": 500, "hidden_size": 192, "intermediate_size": 448, "num_attention_heads": 8}
TEXT_CONFIG |= {"num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {"hidden": 192, "intermediate": 448, "heads": 8, "kv_heads": 2, "head_dim": 32, "vocabulary": 500}


def llava():
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4, image_size=72, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(num_hidden_layers=3, **TEXT_CONFIG),
        image_token_index=IMAGE_ID,
        vision_feature_layer=-2,
        image_seq_length=81,
    )
    shape = ModelShape(
        "llava",
        DecoderShape(3, **DECODER),
        EncoderShape(4, 128, 320, 4, patch_inputs=192, prefix_tokens=1),
        (LinearShape(128, 192), LinearShape(192, 192)),
    )
    medium = MediumShape("image", (1, 9, 9), encoder_tokens=82, encoder_sequences=(82,))
    return config, shape, medium, {"pixel_values": torch.randn(1, 3, 72, 72)}


def qwen():
    vision = {"depth": 4, "hidden_size": 128, "intermediate_size": 320, "num_heads": 4, "patch_size": 4}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 256}
    vision |= {"fullatt_block_indexes": [1, 3], "window_size": 16}
    text = TEXT_CONFIG | {"num_hidden_layers": 3, "hidden_size": 256}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_ID, video_token_id=91)
    shape = ModelShape(
        "qwen2_5_vl",
        DecoderShape(3, **DECODER | {"hidden": 256}),
        EncoderShape(4, 128, 320, 4, patch_inputs=96, gated_mlp=True, windowed_layers=(0, 2)),
        (LinearShape(512, 512), LinearShape(512, 256)),
    )
    # 10 x 14 patches are 5 x 7 visual tokens; windows of 2 x 2 visual tokens are cut off at the right and lower edges.
    windows = tuple(4 * height * width for height in (2, 2, 1) for width in (2, 2, 2, 1))
    medium = MediumShape("image", (1, 5, 7), (), 140, (140,), windows)
    return config, shape, medium, {"pixel_values": torch.randn(140, 96), "image_grid_thw": torch.tensor([[1, 10, 14]])}


def gemma():
    window = 50
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    text = Gemma3TextConfig(**TEXT_CONFIG, num_hidden_layers=3, layer_types=kinds, sliding_window=window)
    vision = SiglipVisionConfig(
        hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=8
    )
    vision.vision_use_head = False
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_index=IMAGE_ID)
    shape = ModelShape(
        "gemma3",
        DecoderShape(3, **DECODER, layer_windows=(window, window, None)),
        EncoderShape(3, 128, 320, 4, patch_inputs=192),
        (LinearShape(128, 192),),
    )
    medium = MediumShape("image", (1, 4, 4), encoder_tokens=64, encoder_sequences=(64,))
    return config, shape, medium, {"pixel_values": torch.randn(1, 3, 64, 64)}


def build(make):
    torch.manual_seed(0)
    config, shape, medium, inputs = make()
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    text = torch.randint(3, 80, (1, TEXT))
    images = torch.full((1, medium.tokens), IMAGE_ID)
    inputs["input_ids"] = torch.cat([text[:, :4], images, text[:, 4:]], dim=1)
    is_image = (inputs["input_ids"] == IMAGE_ID).long()
    inputs |= {"token_type_ids": is_image} if make is gemma else {}
    inputs |= {"mm_token_type_ids": is_image} if make is qwen else {}
    return model, shape, medium, inputs


@torch.no_grad()
def counted(model, **inputs):
    with FlopCounterMode(display=False) as counter:
        output = model(**inputs, logits_to_keep=1, use_cache=True)
    return counter.get_total_flops(), cache_in(output)


@pytest.mark.parametrize("make", [llava, qwen, gemma])
def test_exact_prefill_is_what_eager_attention_executes(make):
    model, shape, medium, inputs = build(make)
    measured, cache = counted(model, **inputs)
    cost = estimate_cost(shape, Plan(), [medium], TEXT, dtype_bytes=4)
    assert cost.prefill_flops.plain == pytest.approx(measured, rel=TOLERANCE)
    assert cost.kv_bytes.plain == stored_bytes(cache)


@pytest.mark.full
@pytest.mark.parametrize("make", [llava, gemma])
def test_exact_decoding_is_what_eager_attention_executes(make):
    model, shape, medium, inputs = build(make)
    _, cache = counted(model, **inputs)
    measured = 0
    for _ in range(STEPS):
        flops, cache = counted(model, input_ids=torch.tensor([[5]]), **{CACHE: cache})
        measured += flops
    cost = estimate_cost(shape, Plan(), [medium], TEXT, new_tokens=STEPS + 1, dtype_bytes=4)
    assert cost.decode_flops.plain == pytest.approx(measured, rel=TOLERANCE)
    assert cost.kv_bytes.plain == stored_bytes(cache)


def test_two_frames_attend_apart():
    model, shape, *_ = build(qwen)
    medium = MediumShape("video", (2, 4, 4), (), 128, (64, 64), (16,) * 8)
    grid = torch.tensor([[2, 8, 8]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.visual(torch.randn(128, 96), grid_thw=grid)
    assert estimate_cost(shape, Plan(), [medium], 1).encoder_flops.plain == pytest.approx(
        counter.get_total_flops(), rel=TOLERANCE
    )


def stored_bytes(cache):
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
