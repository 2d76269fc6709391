"""Published models in numbers: shapes of the presets against hand-written ones, and which layers see a window."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from foveate.core.shape import DecoderShape, EncoderShape, LayerShape, LinearShape, ModelShape, RowsPer, StateShape
from foveate.cost.presets import load_preset, preset_names
from foveate.families import family_for


def merger(*widths: int, after: int | None = None) -> tuple[LinearShape, ...]:
    """Layers of a merger inside an encoder, which meets what stages left of the visual tokens."""
    return tuple(LinearShape(a, b, RowsPer.LEFT, after=after) for a, b in pairwise(widths))


def delta_net(hidden: int) -> StateShape:
    """32 heads of 128 for values and 16 for keys and queries; projections to q, k, v, z and back, and two numbers a head."""
    convolved = 2 * 16 * 128 + 32 * 128
    return StateShape(hidden * (convolved + 2 * 32 * 128 + 64), 4 * convolved, 3 * 32 * 128**2, 4 * convolved, 32 * 128**2)


def lfm2(hidden: int, heads: int, intermediate: int, encoder: EncoderShape) -> ModelShape:
    """Ten short convolutions and six layers that attend."""
    attends = LayerShape(8, 64, intermediate)
    convolves = replace(attends, state=StateShape(4 * hidden**2, 3 * hidden, 0, 3 * hidden, 0))
    layers = tuple(attends if layer in (2, 5, 8, 10, 12, 14) else convolves for layer in range(16))
    decoder = DecoderShape(
        16, hidden, intermediate, heads, 8, 64, vocabulary=65536, layer_windows=(None,) * 16, layer_shapes=layers
    )
    return ModelShape("lfm2_vl", decoder, encoder, (LinearShape(4 * encoder.hidden, 2048), LinearShape(2048, hidden)))


# A patch of an LFM2-VL meets the whole table of 256 positions too.
QWEN_VISION = EncoderShape(27, 1152, 4304, 16, patch_inputs=3 * 2 * 16 * 16)
CLIP_L = EncoderShape(24, 1024, 4096, 16, patch_inputs=588, prefix_tokens=1)
SHAPES = {
    "llava-1.5-7b": ModelShape(
        "llava",
        DecoderShape(32, 4096, 11008, 32, 32, 128, vocabulary=32064, layer_windows=(None,) * 32),
        CLIP_L,
        (LinearShape(1024, 4096), LinearShape(4096, 4096)),
    ),
    "llava-1.5-13b": ModelShape(
        "llava",
        DecoderShape(40, 5120, 13824, 40, 40, 128, vocabulary=32064, layer_windows=(None,) * 40),
        CLIP_L,
        (LinearShape(1024, 5120), LinearShape(5120, 5120)),
    ),
    "llava-1.6-mistral-7b": ModelShape(
        "llava_next",
        DecoderShape(32, 4096, 14336, 32, 8, 128, vocabulary=32064, layer_windows=(None,) * 32),
        CLIP_L,
        (LinearShape(1024, 4096, RowsPer.PATCH), LinearShape(4096, 4096, RowsPer.PATCH)),
    ),
    "llava-onevision-7b": ModelShape(
        "llava_onevision",
        DecoderShape(28, 3584, 18944, 28, 4, 128, vocabulary=152128, layer_windows=(None,) * 28),
        EncoderShape(26, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(1152, 3584, RowsPer.PATCH), LinearShape(3584, 3584, RowsPer.PATCH)),
    ),
    "video-llava-7b": ModelShape(
        "video_llava",
        DecoderShape(32, 4096, 11008, 32, 32, 128, vocabulary=32064, layer_windows=(None,) * 32),
        CLIP_L,
        (
            LinearShape(1024, 4096, kind="image"),
            LinearShape(4096, 4096, kind="image"),
            LinearShape(1024, 4096, RowsPer.ENCODED, "video"),
            LinearShape(4096, 4096, RowsPer.ENCODED, "video"),
        ),
    ),
    "internvl3-8b": ModelShape(
        "internvl",
        DecoderShape(28, 3584, 18944, 28, 4, 128, vocabulary=151674, layer_windows=(None,) * 28),
        CLIP_L,
        (LinearShape(4096, 3584), LinearShape(3584, 3584)),
    ),
    "aya-vision-8b": ModelShape(
        "aya_vision",
        DecoderShape(32, 4096, 14336, 32, 8, 128, vocabulary=256000, layer_windows=((4096,) * 3 + (None,)) * 8),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(4608, 28672), LinearShape(14336, 4096)),
    ),
    "paligemma-3b-224": ModelShape(
        "paligemma",
        DecoderShape(18, 2048, 16384, 8, 1, 256, vocabulary=257216, layer_windows=(None,) * 18),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(1152, 2048),),
    ),
    "paligemma2-3b-448": ModelShape(
        "paligemma",
        DecoderShape(26, 2304, 9216, 8, 4, 256, vocabulary=257216, layer_windows=(4096, None) * 13),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(1152, 2304),),
    ),
    "qwen2-vl-7b": ModelShape(
        "qwen2_vl",
        DecoderShape(28, 3584, 18944, 28, 4, 128, vocabulary=152064, layer_windows=(None,) * 28),
        EncoderShape(32, 1280, 5120, 16, patch_inputs=3 * 2 * 14 * 14),
        merger(5120, 5120, 3584),
    ),
    "qwen2.5-vl-7b": ModelShape(
        "qwen2_5_vl",
        DecoderShape(28, 3584, 18944, 28, 4, 128, vocabulary=152064, layer_windows=(None,) * 28),
        EncoderShape(
            32,
            1280,
            3420,
            16,
            patch_inputs=3 * 2 * 14 * 14,
            gated_mlp=True,
            windowed_layers=(*range(7), *range(8, 15), *range(16, 23), *range(24, 31)),
        ),
        merger(5120, 5120, 3584),
    ),
    "qwen3-vl-8b": ModelShape(
        "qwen3_vl",
        DecoderShape(36, 4096, 12288, 32, 8, 128, vocabulary=151936, layer_windows=(None,) * 36),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=3 * 2 * 16 * 16),
        tuple(layer for at in (8, 16, 24, None) for layer in merger(4608, 4608, 4096, after=at)),
    ),
    "qwen3-vl-30b-a3b": ModelShape(
        "qwen3_vl_moe",
        DecoderShape(
            48,
            2048,
            6144,
            32,
            4,
            128,
            vocabulary=151936,
            layer_windows=(None,) * 48,
            layer_shapes=(LayerShape(4, 128, 8 * 768, other_weights=2048 * 128),) * 48,
        ),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=3 * 2 * 16 * 16),
        tuple(layer for at in (8, 16, 24, None) for layer in merger(4608, 4608, 2048, after=at)),
    ),
    "qwen3.5-9b": ModelShape(
        "qwen3_5",
        DecoderShape(
            32,
            4096,
            12288,
            16,
            4,
            256,
            vocabulary=248320,
            layer_windows=(None,) * 32,
            layer_shapes=(
                (LayerShape(4, 256, 12288, state=delta_net(4096)),) * 3
                + (LayerShape(4, 256, 12288, other_weights=4096 * 16 * 256),)
            )
            * 8,
        ),
        QWEN_VISION,
        merger(4608, 4608, 4096),
    ),
    # Eight of 256 experts, one for all, the router and the gate of the latter.
    "qwen3.6-35b-a3b": ModelShape(
        "qwen3_5_moe",
        DecoderShape(
            40,
            2048,
            9 * 512,
            16,
            2,
            256,
            vocabulary=248320,
            layer_windows=(None,) * 40,
            layer_shapes=(
                (LayerShape(2, 256, 9 * 512, other_weights=2048 * 257, state=delta_net(2048)),) * 3
                + (LayerShape(2, 256, 9 * 512, other_weights=2048 * (257 + 16 * 256)),)
            )
            * 10,
        ),
        QWEN_VISION,
        merger(4608, 4608, 2048),
    ),
    "lfm2-vl-450m": lfm2(1024, 16, 4608, EncoderShape(12, 768, 3072, 12, patch_inputs=3 * 16 * 16 + 256)),
    "lfm2-vl-1.6b": lfm2(2048, 32, 8192, EncoderShape(27, 1152, 4304, 16, patch_inputs=3 * 16 * 16 + 256)),
    "gemma-4-e2b": ModelShape(
        "gemma4",
        DecoderShape(
            35,
            1536,
            6144,
            8,
            1,
            256,
            vocabulary=262144,
            layer_windows=((512,) * 4 + (None,)) * 7,
            layer_shapes=((LayerShape(1, 256, 6144, 2, 786432),) * 4 + (LayerShape(1, 512, 6144, 2, 786432),)) * 3
            + ((LayerShape(1, 256, 12288, 0, 786432),) * 4 + (LayerShape(1, 512, 12288, 0, 786432),)) * 4,
            last_only=15,
            entry_weights=1536 * 256 * 35,
        ),
        EncoderShape(16, 768, 3072, 12, patch_inputs=768, gated_mlp=True, pooling=9),
        (LinearShape(768, 1536),),
    ),
    "llama-4-scout": ModelShape(
        "llama4",
        DecoderShape(
            48,
            5120,
            17 * 8192,
            40,
            8,
            128,
            vocabulary=202048,
            layer_windows=((8192,) * 3 + (None,)) * 12,
            layer_shapes=(LayerShape(8, 128, 17 * 8192, other_weights=5120 * 16),) * 48,
        ),
        EncoderShape(34, 1408, 5632, 16, patch_inputs=588, prefix_tokens=1),
        (LinearShape(5632, 4096), LinearShape(4096, 4096), LinearShape(4096, 5120)),
    ),
    "gemma-3-12b": ModelShape(
        "gemma3",
        DecoderShape(48, 3840, 15360, 16, 8, 256, vocabulary=262208, layer_windows=((1024,) * 5 + (None,)) * 8),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(1152, 3840),),
    ),
    "glm-4.1v-9b": ModelShape(
        "glm4v",
        DecoderShape(40, 4096, 13696, 32, 2, 128, vocabulary=151552, layer_windows=(None,) * 40),
        EncoderShape(24, 1536, 4096, 12, patch_inputs=3 * 2 * 14 * 14, gated_mlp=True),
        (
            *merger(6144, 4096, 4096),
            *merger(4096, 13696) * 2,
            *merger(13696, 4096),
        ),
    ),
    "idefics3-8b": ModelShape(
        "idefics3",
        DecoderShape(32, 4096, 14336, 32, 8, 128, vocabulary=128259, layer_windows=(None,) * 32),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(4 * 1152, 4096),),
    ),
    "mistral-small-3.1-24b": ModelShape(
        "mistral3",
        DecoderShape(40, 5120, 32768, 32, 8, 128, vocabulary=131072, layer_windows=(None,) * 40),
        EncoderShape(24, 1024, 4096, 16, patch_inputs=588, gated_mlp=True),
        (LinearShape(4096, 1024), LinearShape(1024, 5120), LinearShape(5120, 5120)),
    ),
    "pixtral-12b": ModelShape(
        "pixtral",
        DecoderShape(40, 5120, 14336, 32, 8, 128, vocabulary=131072, layer_windows=(None,) * 40),
        EncoderShape(24, 1024, 4096, 16, patch_inputs=768, gated_mlp=True),
        (LinearShape(1024, 5120), LinearShape(5120, 5120)),
    ),
    "smolvlm2-2.2b": ModelShape(
        "smolvlm",
        DecoderShape(24, 2048, 8192, 32, 32, 64, vocabulary=49280, layer_windows=(None,) * 24),
        EncoderShape(27, 1152, 4304, 16, patch_inputs=588),
        (LinearShape(9 * 1152, 2048),),
    ),
    "smolvlm2-500m": ModelShape(
        "smolvlm",
        DecoderShape(32, 960, 2560, 15, 5, 64, vocabulary=49280, layer_windows=(None,) * 32),
        EncoderShape(12, 768, 3072, 12, patch_inputs=768),
        (LinearShape(16 * 768, 960),),
    ),
}


# Further sizes: the decoder, its windows aside, and what else differs from the checkpoint above.
OTHER_SIZES = {
    "qwen2.5-vl-3b": ("qwen2.5-vl-7b", (36, 2048, 11008, 16, 2, 128, 151936), 3420),
    "qwen2.5-vl-32b": ("qwen2.5-vl-7b", (64, 5120, 27648, 40, 8, 128, 152064), 3456),
    "qwen2.5-vl-72b": ("qwen2.5-vl-7b", (80, 8192, 29568, 64, 8, 128, 152064), 3456),
    "gemma-3-4b": ("gemma-3-12b", (34, 2560, 10240, 8, 4, 256, 262208), 4304),
    "gemma-3-27b": ("gemma-3-12b", (62, 5376, 21504, 32, 16, 128, 262208), 4304),
}
for size, (known, decoder, intermediate) in OTHER_SIZES.items():
    shape = SHAPES[known]
    windows = ((1024,) * 5 + (None,) if known.startswith("gemma") else (None,)) * decoder[0]
    *before, last = shape.projector
    SHAPES[size] = replace(
        shape,
        decoder=DecoderShape(*decoder, layer_windows=windows[: decoder[0]]),
        encoder=replace(shape.encoder, intermediate=intermediate),
        projector=(*before, replace(last, outputs=decoder[1])),
    )


def config_of(name: str):
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset(name))


@pytest.mark.parametrize("name", preset_names())
def test_the_shape_of_a_preset(name):
    config = config_of(name)
    assert family_for(config).model_shape(config) == SHAPES[name]


def test_layers_with_a_window():
    config = config_of("gemma-3-12b")
    windows = family_for(config).decoder_windows(config)
    assert [layer for layer, window in enumerate(windows) if window is None] == [5, 11, 17, 23, 29, 35, 41, 47]
    assert SHAPES["gemma-3-12b"].decoder.window(4) == 1024 and SHAPES["gemma-3-12b"].decoder.window(5) is None


def test_sliding_layers_that_a_config_switches_on():
    preset = load_preset("qwen2.5-vl-7b")
    preset["text_config"] |= {"use_sliding_window": True, "sliding_window": 32768, "max_window_layers": 26}
    from transformers import AutoConfig

    config = AutoConfig.for_model(**preset)
    assert family_for(config).decoder_windows(config) == (None,) * 26 + (32768,) * 2


def test_features_of_several_encoder_layers_are_wider():
    preset = load_preset("llava-1.5-7b") | {"vision_feature_layer": [-2, -5, -8]}
    from transformers import AutoConfig

    config = AutoConfig.for_model(**preset)
    assert family_for(config).model_shape(config).projector[0] == LinearShape(3 * 1024, 4096)
