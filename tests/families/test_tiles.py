"""InternVL, Aya Vision, Cohere2 Vision, Ovis2 and a relative: tiles per image size; which tiles of a prompt make one image."""

from __future__ import annotations

import ast
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import foveate
from foveate import families
from foveate.cost.presets import load_preset
from foveate.errors import InputError, UnsupportedCombination, UnsupportedModel
from foveate.families import family_for
from tests import tiny
from tests.families.features import flat, painted, places
from tests.families.processors import image, image_processor, tokenizer
from tests.marks import one_and_more

# One tile, wide, high, a strip, one pixel, more than twice the pixels of the tiles.
SIZES = [(300, 300), (1600, 500), (500, 1600), (20, 900), (1, 1), (3000, 2000)]
FAMILIES = tuple(
    pytest.param(name, marks=pytest.mark.runs(name))
    for name in ("internvl", "aya_vision", "cohere2_vision", "ovis2", "qianfan_ocr")
)


def config_of(preset: str, **changes):
    from transformers import AutoConfig

    return AutoConfig.for_model(**(load_preset(preset) | changes))


def got_ocr(side: int, **options):
    size = {"height": side, "width": side}
    return image_processor("got_ocr2", "got_ocr2", "GotOcr2ImageProcessorPil", size=size, **options)


class InternVL:
    """Its pixels and prompts as the processor makes them; the whole one needs a video processor, thus torchvision."""

    name, preset = "internvl", "internvl3-8b"

    def __init__(self) -> None:
        from transformers import InternVLProcessor

        self.config, self.pixels = config_of(self.preset), got_ocr(448, crop_to_patches=True)
        words = tokenizer(start_image_token="<img>", end_image_token="</img>", context_image_token="<ctx>")
        self.rules = object.__new__(InternVLProcessor)
        self.rules.tokenizer, self.rules.image_seq_length = words, 256
        self.rules.start_image_token, self.rules.end_image_token, self.rules.image_token = "<img>", "</img>", "<ctx>"
        self.words, self.placeholder = words, words.context_image_token_id

    def __call__(self, prompts):
        """Inputs of prompts, each a list of images with text around; and the tiles of each image."""
        if not hasattr(self.rules, "replace_image_token"):
            pytest.skip("this transformers expands images in another place")
        found = self.pixels(images=[picture for prompt in prompts for picture in prompt], return_tensors="pt")
        expanded = iter([self.rules.replace_image_token(found, number) for number in range(len(found["num_patches"]))])
        texts = ["text " + " text ".join(next(expanded) for _ in prompt) + " text" for prompt in prompts]
        inputs = self.words(texts, padding=True, return_tensors="pt")
        return {"input_ids": inputs["input_ids"], "pixel_values": found["pixel_values"]}, found["num_patches"].tolist()


class Aya:
    name, preset = "aya_vision", "aya-vision-8b"

    def __init__(self) -> None:
        from transformers import AyaVisionProcessor

        self.config, self.pixels = config_of(self.preset), got_ocr(364)
        marks = {"start": "<|START_OF_IMG|>", "end": "<|END_OF_IMG|>", "patch": "<|IMG_PATCH|>", "whole": "TILE_GLOBAL"}
        marks |= {f"tile_{number}": f"TILE_{number}" for number in range(1, 13)}
        self.rules = AyaVisionProcessor(self.pixels, tokenizer(image_token="<image>", **marks))
        self.placeholder = self.rules.image_token_id

    def __call__(self, prompts):
        texts = ["text " + "<image>" * len(prompt) + " text" for prompt in prompts]
        inputs = self.rules(images=prompts, text=texts, return_tensors="pt")
        flat = [picture for prompt in prompts for picture in prompt]
        counted = self.pixels(images=flat, crop_to_patches=True, return_tensors="pt")
        return inputs, counted["num_patches"].tolist()


class Ovis2:
    name = "ovis2"

    def __init__(self) -> None:
        from transformers import Ovis2Config, Ovis2Processor, Ovis2VisionConfig

        vision = Ovis2VisionConfig(image_size=448, hidden_stride=2)
        self.config = Ovis2Config(vision_config=vision)
        options = {"size": {"height": 448, "width": 448}, "crop_to_patches": True}
        self.pixels = image_processor("ovis2", "ovis2", "Ovis2ImageProcessorPil", **options)
        marks = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
        words = tokenizer(image_token="<image>", **{mark.strip("<>").lower(): mark for mark in marks})
        self.rules = Ovis2Processor(self.pixels, words)
        self.placeholder = words.convert_tokens_to_ids("<IMG_ATOM>")

    def __call__(self, prompts):
        texts = ["text " + "<image>" * len(prompt) + " text" for prompt in prompts]
        flat = [picture for prompt in prompts for picture in prompt]
        inputs = self.rules(images=flat, text=texts, padding=True, return_tensors="pt")
        grids = self.pixels(images=flat, return_tensors="pt")["grids"].tolist()
        return inputs, [down * across + 1 if down * across > 1 else 1 for down, across in grids]


class Cohere2:
    """Its image processor needs torchvision: the rule for the number of tiles is read from the installed file alone."""

    name = "cohere2_vision"

    def __init__(self) -> None:
        from transformers import Cohere2VisionConfig, Cohere2VisionProcessor, SiglipVisionConfig

        self.config = Cohere2VisionConfig(vision_config=SiglipVisionConfig(image_size=512, patch_size=16))
        self.rules = object.__new__(Cohere2VisionProcessor)
        self.rules.patch_size, self.rules.image_token, self.rules.img_line_break_token = 16, "<image>", "<break>"
        self.rules.boi_token, self.rules.eoi_token = "<boi>", "<eoi>"
        self.words = tokenizer(image_token="<image>", row="<break>", boi_token="<boi>", eoi_token="<eoi>")
        self.placeholder, self.canvas = self.words.image_token_id, self._rule()

    def _rule(self):
        import numpy

        package = find_spec("transformers.models.cohere2_vision")
        assert package is not None and package.submodule_search_locations is not None
        file = Path(package.submodule_search_locations[0]) / "image_processing_cohere2_vision.py"
        functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        for function in functions:
            function.decorator_list = []
        names = {"np": numpy}
        exec(compile(ast.Module(functions, []), str(file), "exec"), names)
        return names["get_optimal_tiled_canvas"]

    def __call__(self, prompts):
        if not hasattr(self.rules, "replace_image_token"):
            pytest.skip("this transformers expands images in another place")
        flat = [picture for prompt in prompts for picture in prompt]
        grids = [self.canvas((picture.height, picture.width), (512, 512), 1, 12) for picture in flat]
        tiles = [int(across * down + 1 if across * down > 1 else 1) for across, down in grids]
        expanded = iter([self.rules.replace_image_token({"num_patches": tiles}, number) for number in range(len(flat))])
        texts = ["text " + "".join(next(expanded) for _ in prompt) + " text" for prompt in prompts]
        inputs = self.words(texts, padding=True, return_tensors="pt")
        return {"input_ids": inputs["input_ids"], "pixel_values": torch.zeros(sum(tiles), 3, 1, 1)}, tiles


MADE: dict[type, object] = {}


def made(family: type):
    return MADE.setdefault(family, family())


every_family = pytest.mark.parametrize("kind", [InternVL, Aya, Cohere2, Ovis2])


def media(made, inputs):
    ids = inputs["input_ids"]
    ids = torch.where(ids == made.placeholder, made.config.image_token_id, ids)
    columns = int((ids == made.config.image_token_id).sum())
    shapes = family_for(made.config).media(made.config, {**inputs, "input_ids": ids}, {"image": columns})["image"]
    assert sum(shape.tokens for shape in shapes) == columns
    return shapes


@every_family
@pytest.mark.parametrize("size", one_and_more([(size,) for size in SIZES], 2))
def test_an_image_fills_the_columns_that_its_processor_makes(kind, size):
    family = made(kind)
    inputs, (tiles,) = family([[image(*size)]])
    assert len(inputs["pixel_values"]) == tiles
    (shape,) = media(family, inputs)
    assert [shape] == family_for(family.config).media_of_images(family.config, [size])
    assert len(shape.encoder_sequences) == len(shape.pieces) == tiles
    assert shape.separators == ()


@pytest.mark.full
@every_family
def test_tiles_of_several_images_and_prompts_are_told_apart(kind):
    family = made(kind)
    sizes = [[(300, 300), (1600, 500)], [(500, 1600)], [(20, 20), (30, 30), (900, 900)]]
    inputs, tiles = family([[image(*size) for size in prompt] for prompt in sizes])
    flat = [size for prompt in sizes for size in prompt]
    assert media(family, inputs) == family_for(family.config).media_of_images(family.config, flat)
    assert [len(shape.pieces) for shape in media(family, inputs)] == tiles


@every_family
def test_many_sizes_have_the_tiles_of_the_processor_s_rule(kind):
    family, rng = made(kind), random.Random(0)
    sizes = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(400)]
    sizes += [(rng.randint(1, 40), rng.randint(1, 3000)) for _ in range(100)]
    sizes += [(side, side * rng.randint(1, 3)) for side in range(100, 900, 40)]
    shapes = family_for(family.config).media_of_images(family.config, sizes)
    for (width, height), shape in zip(sizes, shapes, strict=True):
        assert len(shape.pieces) == rule(family, width, height), (width, height)


def rule(family, width: int, height: int) -> int:
    if isinstance(family, Cohere2):
        across, down = family.canvas((height, width), (512, 512), 1, 12)
    else:
        side = family.pixels.size["height"]
        module = __import__(type(family.pixels).__module__, fromlist=["x"])
        if isinstance(family, Ovis2):
            across, down = module.get_min_tile_covering_grid((height, width), side, 12)
        else:
            across, down = module.get_optimal_tiled_canvas((height, width), (side, side), 1, 12)
    return int(across * down + 1 if across * down > 1 else 1)


@pytest.mark.parametrize(("preset", "side"), [("internvl3-8b", 16), ("aya-vision-8b", 13)])
def test_an_estimate_knows_the_tokens_of_each_size(preset, side):
    for size, tiles in (((300, 300), 1), ((1200, 300), 5)):
        cost = foveate.estimate(preset, "fastv(layer=4, keep=0.5)", images=[size])
        assert cost.visual_tokens_per_layer[0][0] == tiles * side * side


@pytest.mark.parametrize("name", FAMILIES)
def test_the_features_of_a_region_are_at_its_cell_of_its_tile(name):
    model, family = tiny.tiny_model(name), families.get(name)
    generator = torch.Generator().manual_seed(0)
    shape = family.media(
        model.config,
        {"input_ids": torch.tensor([family.tiny_ids([90] * 9, 3)])},
        {"image": 27},
    )["image"][0]
    pixels = torch.randn(3, 3, 24, 24, generator=generator)

    def features(tiles):
        with torch.no_grad():
            return flat(model.model.get_image_features(tiles))

    before = features(pixels)
    assert shape.grids == ((1, 3, 3),) * 3
    for tile in range(3):
        for y in range(3):
            for x in range(3):
                other = pixels.clone()
                region = other[tile, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                region += 4 * torch.randn(region.shape, generator=generator)
                after = features(other)
                assert places(shape, before, after)[tile] == (0, y, x)
                changed = (after - before).view(3, -1).abs().amax(1) > 0
                assert changed.tolist() == [number == tile for number in range(3)]


@pytest.mark.parametrize("kind", [InternVL, Aya])
def test_tiles_stand_in_raster_order_and_the_thumbnail_last(kind):
    family = made(kind)
    side = family.pixels.size["height"]
    plain = image(2 * side, 2 * side)
    before, tiles = family([[plain]])
    assert tiles == [5]
    for number in range(4):
        left, top = number % 2 * side, number // 2 * side
        after, _ = family([[painted(plain, (left, top, left + side, top + side))]])
        change = (after["pixel_values"] - before["pixel_values"]).flatten(1).abs().mean(1)
        assert int(change[:4].argmax()) == number and change[4] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_what_does_not_fit_is_refused(name):
    family = families.get(name)
    config = family.tiny_config()
    ids = torch.tensor([family.tiny_ids([90] * 9, 3)])
    with pytest.raises(InputError, match="tells only in input_ids which tiles make one image: pass them, not inputs_embeds"):
        family.media(config, {"inputs_embeds": torch.zeros(1, 30, 8)}, {"image": 27})
    with pytest.raises(InputError, match="placeholders for 3 tiles of images, but pixel values for 2 are given"):
        family.media(config, {"input_ids": ids, "pixel_values": torch.zeros(2, 3, 24, 24)}, {"image": 27})
    with pytest.raises(InputError, match="a tile of an image fills 9 image placeholder tokens, but 8 follow each other"):
        family.media(config, {"input_ids": torch.tensor([[5] + [90] * 8 + [5]])}, {"image": 8})
    with pytest.raises(InputError, match="sides are at least 1"):
        family.media_of_images(config, [(0, 4)])
    assert family.media(config, {}, {"image": 0}) == {"image": []}


def test_configs_without_a_grid_are_refused():
    with pytest.raises(UnsupportedModel, match="keeps the class token of each tile"):
        family_for(config_of("internvl3-8b", vision_feature_select_strategy="full"))
    with pytest.raises(UnsupportedModel, match="cuts the first token, which for a SigLIP encoder is a patch"):
        family_for(config_of("aya-vision-8b", vision_feature_select_strategy="default"))


def test_frames_of_a_video_are_images():
    config = config_of("internvl3-8b")
    with pytest.raises(UnsupportedCombination, match="each frame of a video as an image of its own, of 256 visual tokens"):
        family_for(config).media_of_video(config, (640, 480), 8)
    # What the processor writes for two frames: brackets and a name around each run of one tile.
    ids = torch.full((2 * 256 + 6,), 5)
    ids[2:258] = ids[261:517] = config.image_token_id
    shapes = family_for(config).media(config, {"input_ids": ids[None]}, {"image": 512})["image"]
    assert [(shape.kind, shape.grid, shape.crops) for shape in shapes] == [("image", (1, 16, 16), ())] * 2
