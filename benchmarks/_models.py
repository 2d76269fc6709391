"""Random-weight models, scaled down and at the size of published ones, and prompts with a given number of visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.cost import presets
from foveate.families import family_for

TEXT_TOKENS = 64
# A larger picture becomes several: a square of 32 x 32 visual tokens is the largest.
_LARGEST_SIDE = 32
# How far the visual tokens of a model whose pictures have one size may be from what was asked for.
_NEAR = 0.05
_IDS = dict(image_token_id=7995, video_token_id=7996, vision_start_token_id=7997, vision_end_token_id=7998)


class Impossible(Exception):
    """A cell that cannot be measured; the text says why."""


def _text(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return dict(
        vocab_size=8000, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=32768,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _llava(side: int, text: dict[str, Any], hidden: int, layers: int) -> Any:
    """A LLaVA whose pictures are `side` x `side` visual tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=max(1, hidden // 64),
        image_size=14 * side, patch_size=14,
    )  # fmt: skip
    return LlavaConfig(
        text_config=LlamaConfig(**text), vision_config=vision, image_token_id=_IDS["image_token_id"], image_seq_length=side**2
    )


def _qwen(text: dict[str, Any], hidden: int, layers: int) -> Any:
    """A Qwen2.5-VL: grouped keys, a packed encoder with windows and one full layer in four, 2 x 2 merger."""
    from transformers import Qwen2_5_VLConfig

    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]  # 16, 24, 24 of 64 in the published models
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    vision = dict(
        depth=layers, hidden_size=hidden, intermediate_size=3 * hidden, num_heads=max(1, hidden // 64), patch_size=14,
        spatial_merge_size=2, temporal_patch_size=2, in_channels=3, out_hidden_size=text["hidden_size"], window_size=112,
        fullatt_block_indexes=[layer for layer in range(layers) if layer % 4 == 3],
    )  # fmt: skip
    return Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **_IDS)


def _siglip_encoder(side: int) -> Any:
    """SigLIP-so400m/14 in front of next to no language model; `side` is 27 in the published one."""
    from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

    return LlavaConfig(
        text_config=LlamaConfig(**_text(1, 64, 64, 1, 1)), vision_config=SiglipVisionConfig(**_so400m(14 * side)),
        image_token_id=_IDS["image_token_id"], image_seq_length=side**2, vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )  # fmt: skip


def _so400m(pixels: int) -> dict[str, Any]:
    return dict(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=pixels,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip


def _qwen_encoder(side: int) -> Any:
    """Qwen2.5-VL's encoder in front of next to no language model."""
    config = _qwen(_text(1, 128, 64, 1, 1), 64, 4)
    shape = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31])
    for name, value in shape.items():
        setattr(config.vision_config, name, value)
    return config


def _onevision(side: int) -> Any:
    """LLaVA-OneVision-0.5B: SigLIP-so400m without its last layer, Qwen2-0.5B with a short vocabulary."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(**{**_so400m(384), "num_hidden_layers": 26})
    pinpoints = [[384 * across, 384 * down] for across in range(1, 7) for down in range(1, 7)]
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**_text(24, 896, 4864, 14, 2)), vision_config=vision,
        image_token_index=_IDS["image_token_id"], video_token_index=_IDS["video_token_id"], image_grid_pinpoints=pinpoints,
    )  # fmt: skip


# Scaled-down shapes: the config for pictures of `side` x `side` visual tokens.
SCALED: dict[str, Callable[[int], Any]] = {
    "llava-100m": lambda side: _llava(side, _text(12, 768, 2048, 12, 12), 256, 6),
    "llava-100m-bare": lambda side: _llava(side, _text(12, 768, 2048, 12, 12), 32, 2),  # hardly an encoder
    "llava-230m": lambda side: _llava(side, _text(16, 1024, 2816, 16, 16), 320, 6),
    "qwen2.5-vl-120m": lambda side: _qwen(_text(12, 768, 3072, 12, 2), 256, 4),
    "qwen2.5-vl-250m": lambda side: _qwen(_text(16, 1024, 3840, 16, 4), 320, 4),
    "siglip-so400m": _siglip_encoder,
    "qwen2.5-vl-encoder": _qwen_encoder,
    "onevision-0.5b": _onevision,
    "smoke-llava": lambda side: _llava(side, _text(4, 32, 64, 4, 4), 32, 2),
    "smoke-qwen2.5-vl": lambda side: _qwen(_text(4, 64, 64, 4, 2), 32, 4),
}
CPU_MODELS = ("llava-100m", "qwen2.5-vl-120m")
GPU_MODELS = ("llava-1.5-7b", "llava-1.5-13b", "llava-onevision-7b", "qwen2.5-vl-7b")
SMOKE_MODELS = ("smoke-llava", "smoke-qwen2.5-vl")


@dataclass(frozen=True)
class Prompt:
    """One sample: equal pictures and text.

    Attributes:
        config: of the model that reads it.
        pictures: (width, height) in pixels of each picture.
        visual_tokens: columns that the pictures fill.
    """

    config: Any
    pictures: tuple[tuple[int, int], ...]
    visual_tokens: int


def names() -> list[str]:
    """Names of all models."""
    return [*SCALED, *presets.preset_names()]


def prompt_for(name: str, visual_tokens: int, new_tokens: int = 1) -> Prompt:
    """The config of a model, and pictures with so many visual tokens.

    Raises:
        Impossible: if the model cannot see so many, or not so many pictures.
    """
    from transformers import AutoConfig

    if name in SCALED:
        count, side = (0, 0) if name == "onevision-0.5b" else _squares(visual_tokens)
        config = SCALED[name](side)
    else:
        config = AutoConfig.for_model(**presets.load_preset(name))
        count, side = 0, 0
    vision = config.vision_config
    if config.model_type == "qwen2_5_vl":
        count, side = _squares(visual_tokens)
        pixels = side * vision.patch_size * vision.spatial_merge_size
    elif config.model_type in ("llava", "llava_onevision"):
        pixels = vision.image_size
        # Several pictures of LLaVA-OneVision are an overview each, one alone is cut into tiles.
        each = family_for(config).media_of_images(config, [(pixels, pixels)] * 2)[0].tokens
        count = round(visual_tokens / each)
        if not count or abs(count * each - visual_tokens) > _NEAR * visual_tokens:
            raise Impossible(f"a picture of {name} has {each} visual tokens: no number of pictures comes near {visual_tokens}")
    else:
        raise Impossible(f"no prompt is built for {config.model_type} here")
    pictures = ((pixels, pixels),) * count
    tokens = sum(medium.tokens for medium in family_for(config).media_of_images(config, pictures))
    most = config.get_text_config().max_position_embeddings
    if tokens + TEXT_TOKENS + new_tokens > most:
        raise Impossible(f"{tokens} visual, {TEXT_TOKENS} text and {new_tokens} new tokens: {name} has {most} positions")
    return Prompt(config, pictures, tokens)


def _squares(tokens: int) -> tuple[int, int]:
    """The fewest equal square pictures that have so many visual tokens together: how many, and their side in tokens."""
    for count in range(1, tokens + 1):
        each, rest = divmod(tokens, count)
        side = round(each**0.5)
        if not rest and side * side == each and side <= _LARGEST_SIDE:
            return count, side
    raise Impossible(f"{tokens} visual tokens: not a number of squares")  # not reached: squares of 1 always fit


def weight_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the weights of a config, without making them."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return sum(parameter.nbytes for parameter in model.parameters())


def build(config: Any, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    """A model with seeded random weights that are made on the device: 7B take seconds there, and no host memory."""
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def inputs_for(prompt: Prompt, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the family's processor would hand over for `batch` equal samples: half of the text before the pictures."""
    config, random = prompt.config, torch.Generator().manual_seed(0)
    count = len(prompt.pictures)
    family = family_for(config)
    qwen = config.model_type == "qwen2_5_vl"
    placeholder = family.placeholder_ids(config)["image"]
    runs: list[int] = []
    for medium in family.media_of_images(config, prompt.pictures):
        run = [placeholder] * medium.tokens
        runs += [config.vision_start_token_id, *run, config.vision_end_token_id] if qwen else run
    text = TEXT_TOKENS - (len(runs) - prompt.visual_tokens)
    if text < 2:
        raise Impossible(f"{count} pictures: their brackets leave no room for text")
    words = torch.randint(3, 7000, (text,), generator=random).tolist()
    ids = torch.tensor([words[: text // 2] + runs + words[text // 2 :]]).expand(batch, -1).contiguous()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_pixels(prompt, batch, random)}
    if qwen:
        inputs["mm_token_type_ids"] = (ids == placeholder).int()
    return {key: value.to(device, dtype if value.is_floating_point() else value.dtype) for key, value in inputs.items()}


def _pixels(prompt: Prompt, batch: int, random: torch.Generator) -> dict[str, Tensor]:
    """Pixels of all samples and what describes them."""
    config, count = prompt.config, len(prompt.pictures) * batch
    side = prompt.pictures[0][0]
    if config.model_type == "qwen2_5_vl":
        vision = config.vision_config
        patches = side // vision.patch_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(count * patches**2, width, generator=random)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, patches, patches]] * count)}
    if config.model_type == "llava_onevision":
        return {
            "pixel_values": torch.randn(count, 1, 3, side, side, generator=random),
            "image_sizes": torch.tensor([[side, side]] * count),
            "batch_num_images": torch.tensor([len(prompt.pictures)] * batch),
        }
    return {"pixel_values": torch.randn(count, 3, side, side, generator=random)}


def parts_of(model: Any) -> dict[str, list[Any]]:
    """The modules of the encoder with its projector, and of the language model with its head."""
    encoder = [name for name in ("vision_tower", "multi_modal_projector", "visual") if hasattr(model.model, name)]
    return {
        "encoder": [getattr(model.model, name) for name in encoder],
        "llm": [model.get_submodule(family_for(model.config).decoder), model.lm_head],
    }
