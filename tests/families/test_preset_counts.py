"""`foveate estimate` of a preset counts the visual tokens that the checkpoint's own image processor makes room for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import foveate
from foveate.cost.presets import load_preset, preset_names
from foveate.families import family_for
from tests.families.processors import image, image_processor

SIZES = [(640, 480), (1024, 768), (300, 1200)]


def _grids(module: str, name: str, least: int, most: int) -> Callable[[Any, Any], int]:
    def count(config: Any, picture: Any) -> int:
        vision, size = config.vision_config, {"shortest_edge": least, "longest_edge": most}
        rules = image_processor(module, module, name, patch_size=vision.patch_size, size=size)
        return int(rules(images=[picture], return_tensors="pt")["image_grid_thw"].prod()) // vision.spatial_merge_size**2

    return count


def _tiles(module: str, name: str) -> Callable[[Any, Any], int]:
    def count(config: Any, picture: Any) -> int:
        tile = config.vision_config.image_size
        sizes = {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}}
        tiles = image_processor(module, module, name, **sizes)(images=[picture], return_tensors="pt")["pixel_values"].shape[1]
        # What the processor's own documentation says of image_seq_len.
        return tiles * int((tile // config.vision_config.patch_size) ** 2 / config.scale_factor**2)

    return count


def _pixtral(config: Any, picture: Any) -> int:
    unit = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    options = {"patch_size": {"height": unit, "width": unit}, "size": {"longest_edge": config.vision_config.image_size}}
    rules = image_processor("pixtral", "pixtral", "PixtralImageProcessorPil", **options)
    ((high, wide),) = rules(images=[picture], return_tensors="pt")["image_sizes"].tolist()
    return high // unit * (wide // unit)


COUNTS: dict[str, Callable[[Any, Any], int]] = {
    "Gemma 3": lambda config, picture: config.mm_tokens_per_image,
    "LLaVA 1.5": lambda config, picture: config.image_seq_length,
    "Qwen2-VL": _grids("qwen2_vl", "Qwen2VLImageProcessorPil", 3_136, 12_845_056),
    "Qwen2.5-VL": _grids("qwen2_vl", "Qwen2VLImageProcessorPil", 3_136, 12_845_056),
    "Qwen3.5": _grids("qwen2_vl", "Qwen2VLImageProcessorPil", 65_536, 16_777_216),
    "Qwen3.5 MoE": _grids("qwen2_vl", "Qwen2VLImageProcessorPil", 65_536, 16_777_216),
    "GLM-4.1V": _grids("glm4v", "Glm4vImageProcessorPil", 12_544, 9_633_792),
    "Idefics3": _tiles("idefics3", "Idefics3ImageProcessorPil"),
    "SmolVLM": _tiles("smolvlm", "SmolVLMImageProcessorPil"),
    "Pixtral": _pixtral,
    "Mistral 3": _pixtral,
}


def config_of(preset: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset(preset))


@pytest.mark.parametrize("preset", [name for name in preset_names() if family_for(config_of(name)).title in COUNTS])
@pytest.mark.parametrize("size", SIZES)
def test_an_estimate_counts_the_tokens_of_the_processor(preset, size):
    config = config_of(preset)
    expected = COUNTS[family_for(config).title](config, image(*size))
    cost = foveate.estimate(preset, "random(site=pre_llm, keep=0.5)", images=[size])
    plain, plan = cost.visual_tokens_per_layer
    assert plain[0] == expected and plan[0] == int(expected * 0.5 + 0.5)
