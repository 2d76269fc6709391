"""Presets: published configurations that transformers accepts and that hold the published numbers."""

import pytest

from foveate.cost.presets import load_preset, preset_config, preset_names
from foveate.errors import UnknownName, UnsupportedCombination
from foveate.families import family_for

DECODERS = {  # layers, hidden, intermediate, heads, kv heads, vocabulary
    "llava-1.5-7b": (32, 4096, 11008, 32, 32, 32064),
    "llava-1.5-13b": (40, 5120, 13824, 40, 40, 32064),
    "llava-1.6-mistral-7b": (32, 4096, 14336, 32, 8, 32064),
    "llava-onevision-7b": (28, 3584, 18944, 28, 4, 152128),
    "video-llava-7b": (32, 4096, 11008, 32, 32, 32064),
    "internvl3-8b": (28, 3584, 18944, 28, 4, 151674),
    "aya-vision-8b": (32, 4096, 14336, 32, 8, 256000),
    "paligemma-3b-224": (18, 2048, 16384, 8, 1, 257216),
    "paligemma2-3b-448": (26, 2304, 9216, 8, 4, 257216),
    "qwen2-vl-7b": (28, 3584, 18944, 28, 4, 152064),
    "qwen2.5-vl-7b": (28, 3584, 18944, 28, 4, 152064),
    "qwen2.5-vl-3b": (36, 2048, 11008, 16, 2, 151936),
    "qwen2.5-vl-32b": (64, 5120, 27648, 40, 8, 152064),
    "qwen2.5-vl-72b": (80, 8192, 29568, 64, 8, 152064),
    "gemma-3-12b": (48, 3840, 15360, 16, 8, 262208),
    "gemma-3-4b": (34, 2560, 10240, 8, 4, 262208),
    "gemma-3-27b": (62, 5376, 21504, 32, 16, 262208),
    "glm-4.1v-9b": (40, 4096, 13696, 32, 2, 151552),
    "idefics3-8b": (32, 4096, 14336, 32, 8, 128259),
    "mistral-small-3.1-24b": (40, 5120, 32768, 32, 8, 131072),
    "pixtral-12b": (40, 5120, 14336, 32, 8, 131072),
    "smolvlm2-2.2b": (24, 2048, 8192, 32, 32, 49280),
    "smolvlm2-500m": (32, 960, 2560, 15, 5, 49280),
    "qwen3-vl-8b": (36, 4096, 12288, 32, 8, 151936),
    "qwen3-vl-30b-a3b": (48, 2048, 6144, 32, 4, 151936),
    "qwen3.5-9b": (32, 4096, 12288, 16, 4, 248320),
    "qwen3.6-35b-a3b": (40, 2048, None, 16, 2, 248320),  # every layer has experts
    "lfm2-vl-450m": (16, 1024, 6656, 16, 8, 65536),
    "lfm2-vl-1.6b": (16, 2048, 12288, 32, 8, 65536),
    "gemma-4-e2b": (35, 1536, 6144, 8, 1, 262144),
    "llama-4-scout": (48, 5120, 8192, 40, 8, 202048),
}
ENCODERS = {  # layers, hidden, intermediate, heads
    "llava-1.5-7b": (24, 1024, 4096, 16),
    "llava-1.5-13b": (24, 1024, 4096, 16),
    "llava-1.6-mistral-7b": (24, 1024, 4096, 16),
    "llava-onevision-7b": (26, 1152, 4304, 16),
    "video-llava-7b": (24, 1024, 4096, 16),
    "internvl3-8b": (24, 1024, 4096, 16),
    "aya-vision-8b": (27, 1152, 4304, 16),
    "paligemma-3b-224": (27, 1152, 4304, 16),
    "paligemma2-3b-448": (27, 1152, 4304, 16),
    "qwen2-vl-7b": (32, 3584, None, 16),  # it calls the width of its output hidden_size
    "qwen2.5-vl-7b": (32, 1280, 3420, 16),
    "qwen2.5-vl-3b": (32, 1280, 3420, 16),
    "qwen2.5-vl-32b": (32, 1280, 3456, 16),
    "qwen2.5-vl-72b": (32, 1280, 3456, 16),
    "gemma-3-12b": (27, 1152, 4304, 16),
    "gemma-3-4b": (27, 1152, 4304, 16),
    "gemma-3-27b": (27, 1152, 4304, 16),
    "glm-4.1v-9b": (24, 1536, 13696, 12),
    "idefics3-8b": (27, 1152, 4304, 16),
    "mistral-small-3.1-24b": (24, 1024, 4096, 16),
    "pixtral-12b": (24, 1024, 4096, 16),
    "smolvlm2-2.2b": (27, 1152, 4304, 16),
    "smolvlm2-500m": (12, 768, 3072, 12),
    "qwen3-vl-8b": (27, 1152, 4304, 16),
    "qwen3-vl-30b-a3b": (27, 1152, 4304, 16),
    "qwen3.5-9b": (27, 1152, 4304, 16),
    "qwen3.6-35b-a3b": (27, 1152, 4304, 16),
    "lfm2-vl-450m": (12, 768, 3072, 12),
    "lfm2-vl-1.6b": (27, 1152, 4304, 16),
    "gemma-4-e2b": (16, 768, 3072, 12),
    "llama-4-scout": (34, 1408, 5632, 16),
}


def test_names():
    assert preset_names() == sorted(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_builds_the_config(name):
    from transformers import AutoConfig

    config = AutoConfig.for_model(**load_preset(name))
    text, vision = config.get_text_config(), config.vision_config
    assert DECODERS[name] == (
        text.num_hidden_layers,
        text.hidden_size,
        getattr(text, "intermediate_size", None),
        text.num_attention_heads,
        text.num_key_value_heads,
        text.vocab_size,
    )
    assert ENCODERS[name] == (
        vision.num_hidden_layers,
        vision.hidden_size,
        getattr(vision, "intermediate_size", None),
        vision.num_attention_heads,
    )


@pytest.mark.parametrize("name", DECODERS)
def test_a_preset_says_nothing_that_transformers_changes(name):
    from transformers import AutoConfig

    preset = load_preset(name)
    built = AutoConfig.for_model(**load_preset(name)).to_dict()
    for part, given in ((built, preset), *((built[key], preset[key]) for key in ("text_config", "vision_config"))):
        derived = {"text_config", "vision_config", "sliding_window", "sliding_window_pattern"}
        derived |= {"num_experts", "global_head_dim"}  # written under another name, and layer by layer
        assert {key: part[key] for key in given if key not in derived} == {
            key: value for key, value in given.items() if key not in derived
        }


def test_layers_that_attend_in_windows():
    from transformers import AutoConfig

    gemma = AutoConfig.for_model(**load_preset("gemma-3-12b")).get_text_config()
    assert gemma.sliding_window == 1024
    assert gemma.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 8
    qwen = AutoConfig.for_model(**load_preset("qwen2.5-vl-7b"))
    assert set(qwen.get_text_config().layer_types) == {"full_attention"}
    assert list(qwen.vision_config.fullatt_block_indexes) == [7, 15, 23, 31]


def test_each_call_gives_a_fresh_dict():
    load_preset("llava-1.5-7b")["text_config"]["vocab_size"] = 1
    assert load_preset("llava-1.5-7b")["text_config"]["vocab_size"] == 32064


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"Did you mean 'llava-1.5-7b'\? Known: .*gemma-3-12b"):
        load_preset("llava-1.5-7B")


@pytest.mark.parametrize("name", DECODERS)
def test_a_preset_says_to_families_what_the_config_of_transformers_says(name):
    from transformers import AutoConfig

    assert _all_numbers(preset_config(name)) == _all_numbers(AutoConfig.for_model(**load_preset(name)))


def _all_numbers(config):
    """Everything that an estimate, a check of a plan and `foveate doctor` ask a family for."""
    family = family_for(config)
    layers = range(family.decoder_shape(config).layers)
    sizes = [(1024, 768), (300, 1200), (64, 64), (4000, 3000)]
    pictures = [family.media_of_images(config, [size] * count) for size in sizes for count in (1, 2)]
    try:
        video = family.media_of_video(config, (640, 480), 8)
    except UnsupportedCombination as error:
        video = str(error)
    return (
        type(family),
        family.model_shape(config),
        family.encoder(config),
        family.shared_keys(config),
        [(family.rotates(config, layer), family.refuse_layer(config, layer)) for layer in layers],
        family.refuse_length(config, 100_000),
        pictures,
        video,
    )
