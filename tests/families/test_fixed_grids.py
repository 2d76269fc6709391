"""LLaVA and Gemma 3: every image has the same grid, and it is the one that the model's own processor makes room for."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from foveate.core.shape import MediumShape
from foveate.cost.presets import load_preset
from foveate.errors import InputError, UnsupportedModel
from foveate.families import family_for
from tests import tiny
from tests.families.processors import image, image_processor, tokenizer

SIZES = [(640, 480), (336, 336), (20, 900)]


def config_of(preset: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**(load_preset(preset) | changes))


def siglip(strategy: str) -> Any:
    vision = dict(load_preset("gemma-3-12b")["vision_config"], image_size=384)
    return config_of("llava-1.5-7b", vision_config=vision, vision_feature_select_strategy=strategy)


def test_llava_shows_the_patches_of_clip():
    config = config_of("llava-1.5-7b")
    shape = MediumShape("image", (1, 24, 24), (), encoder_tokens=577, encoder_sequences=(577,))
    assert family_for(config).media_of_images(config, SIZES) == [shape] * 3
    assert shape.tokens == 576


def test_llava_that_keeps_the_cls_token_has_one_separator():
    config = config_of("llava-1.5-7b", vision_feature_select_strategy="full")
    (shape,) = family_for(config).media_of_images(config, SIZES[:1])
    assert (shape.tokens, shape.grid_tokens, shape.separators) == (577, 576, (0,))


def test_llava_with_siglip_has_no_cls_token():
    config = siglip("full")
    (shape,) = family_for(config).media_of_images(config, SIZES[:1])
    assert (shape.grid, shape.separators, shape.tokens, shape.encoder_tokens) == ((1, 27, 27), (), 729, 729)


def test_llava_that_cuts_a_patch_of_siglip_has_no_grid():
    with pytest.raises(UnsupportedModel, match="cuts the first token, which for a SigLIP encoder is a patch"):
        family_for(siglip("default"))


def test_gemma_shows_16_x_16_tokens_of_64_x_64_patches():
    config = config_of("gemma-3-12b")
    (shape,) = family_for(config).media_of_images(config, SIZES[:1])
    assert shape == MediumShape("image", (1, 16, 16), (), encoder_tokens=4096, encoder_sequences=(4096,))


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_llava_fills_the_columns_that_its_processor_makes(strategy):
    from transformers import LlavaProcessor

    config = config_of("llava-1.5-7b", vision_feature_select_strategy=strategy)
    crop = {"height": 336, "width": 336}
    pixels = image_processor("clip", "clip", "CLIPImageProcessorPil", size={"shortest_edge": 336}, crop_size=crop)
    processor = LlavaProcessor(
        pixels,
        tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )
    inputs = processor(images=[image(*size) for size in SIZES], text="text" + " <image> text" * 3, return_tensors="pt")
    columns = {"image": int((inputs["input_ids"] == processor.image_token_id).sum())}
    family = family_for(config)
    assert family.media(config, inputs, columns) == {"image": family.media_of_images(config, SIZES)}


def test_gemma_fills_the_columns_that_its_processor_makes():
    from transformers import Gemma3Processor

    config = config_of("gemma-3-12b")
    pixels = image_processor("gemma3", "gemma3", "Gemma3ImageProcessorPil", size={"height": 896, "width": 896})
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    processor = Gemma3Processor(pixels, words, image_seq_length=config.mm_tokens_per_image)
    inputs = processor(images=[[image(*size) for size in SIZES]], text="text" + " <boi> text" * 3, return_tensors="pt")
    assert tuple(inputs["pixel_values"].shape) == (3, 3, 896, 896)
    columns = {"image": int((inputs["input_ids"] == words.image_token_id).sum())}
    family = family_for(config)
    assert family.media(config, inputs, columns) == {"image": family.media_of_images(config, SIZES)}


@pytest.mark.parametrize("preset", ["llava-1.5-7b", "gemma-3-12b"])
def test_columns_that_no_number_of_images_fills_are_refused(preset):
    config = config_of(preset)
    with pytest.raises(InputError, match=r"100 image placeholder tokens are no multiple of the \d+ that one image fills"):
        family_for(config).media(config, {}, {"image": 100})


@pytest.mark.parametrize("preset", ["llava-1.5-7b", "gemma-3-12b"])
def test_more_placeholders_than_images_are_refused(preset):
    config = config_of(preset)
    family = family_for(config)
    tokens = family.media_of_images(config, SIZES)[0].tokens
    with pytest.raises(InputError, match="placeholders for 2 images, but pixel values for 1 are given"):
        family.media(config, {"pixel_values": [None]}, {"image": 2 * tokens})
    assert len(family.media(config, {}, {"image": 2 * tokens})["image"]) == 2


@pytest.mark.parametrize(("name", "module", "special"), [
    ("deepseek_vl", "deepseek_vl", {"image_token": "<image>"}),
    ("janus", "janus", {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}),
])  # fmt: skip
def test_deepseek_fills_the_columns_that_its_processor_makes(name, module, special):
    if name not in tiny.ALL_FAMILIES:
        pytest.skip("this transformers does not have the model")
    processing = pytest.importorskip(f"transformers.models.{module}.processing_{module}")
    kind = {"deepseek_vl": "DeepseekVL", "janus": "Janus"}[name]
    config = CONFIG_MAPPING[name]()
    vision = config.vision_config
    vision.image_size, vision.patch_size = 384, 16
    pixels = image_processor(module, module, f"{kind}ImageProcessorPil", size={"height": 384, "width": 384})
    processor = getattr(processing, f"{kind}Processor")(pixels, tokenizer(**special))
    inputs = processor(images=[image(*size) for size in SIZES], text="text" + " <image> text" * 3, return_tensors="pt")
    assert tuple(inputs["pixel_values"].shape) == (3, 3, 384, 384)
    columns = {"image": int((inputs["input_ids"] == processor.tokenizer.image_token_id).sum())}
    family = family_for(config)
    assert family.media(config, inputs, columns) == {"image": family.media_of_images(config, SIZES)}
    assert columns == {"image": 3 * 576}


def test_vip_llava_joins_layers_and_always_cuts_the_class_token():
    from transformers import SiglipVisionConfig, VipLlavaConfig

    config = VipLlavaConfig()
    family = family_for(config)
    (shape,) = family.media_of_images(config, SIZES[:1])
    assert (shape.grid, shape.separators, shape.encoder_tokens) == ((1, 24, 24), (), 577)
    assert family.model_shape(config).projector[0].inputs == 5 * 1024
    assert family.encoder(config).used == 23
    with pytest.raises(UnsupportedModel, match="it always cuts the first token"):
        family_for(VipLlavaConfig(vision_config=SiglipVisionConfig()))
