"""LFM2-VL: tiles per image size by the processor's own rules, and which tiles of a prompt make one image."""

from __future__ import annotations

import ast
import math
import random
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foveate import families
from foveate.errors import InputError
from tests import tiny

pytestmark = pytest.mark.skipif(find_spec("transformers.models.lfm2_vl") is None, reason="this transformers does not have it")
SIZES = [(300, 300), (1600, 500), (500, 1600), (20, 900), (1, 1), (3000, 2000), (724, 724), (725, 725), (9000, 300)]


def rules() -> Any:
    """The functions of the processor that look at sizes; the whole one needs torchvision."""
    package = find_spec("transformers.models.lfm2_vl")
    assert package is not None and package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "image_processing_lfm2_vl.py"
    wanted = (
        "round_by_factor",
        "find_closest_aspect_ratio",
        "_target_ratios",
        "_get_grid_layout",
        "smart_resize",
        "_is_image_too_large",
    )
    found = [
        node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    for function in found:
        function.decorator_list = []
    names: dict[str, Any] = {"math": math, "lru_cache": lru_cache}
    exec(compile(ast.Module(found, []), str(file), "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in wanted})


def tiles_of_the_processor(width: int, height: int) -> list[tuple[int, int]]:
    """Tiles (height, width) in visual tokens."""
    its = rules()
    self = SimpleNamespace(_target_ratios=lambda least, most: its._target_ratios(None, least, most))
    wide, high = its.smart_resize(self, height, width, 2, 64, 256, 16)
    if not its._is_image_too_large(self, height, width, 256, 16, 2, 2.0):
        return [(high // 32, wide // 32)]
    across, down, *_ = its._get_grid_layout(self, height, width, min_tiles=2, max_tiles=10, tile_size=512)
    return [(16, 16)] * (across * down) + [(high // 32, wide // 32)]


def test_tiles_are_those_of_the_processor():
    family = families.get("lfm2_vl")
    config = family.tiny_config()
    config.vision_config.patch_size = 16
    generator = random.Random(0)
    sizes = SIZES + [(generator.randint(1, 4000), generator.randint(1, 4000)) for _ in range(200)]
    for size, medium in zip(sizes, family.media_of_images(config, sizes), strict=True):
        expected = tiles_of_the_processor(*size)
        assert [*medium.crops, medium.grid] == [(1, high, wide) for high, wide in expected], size
        assert medium.encoder_tokens == 1024 * len(expected)


def test_markers_tell_which_tiles_make_one_image():
    family, maker = families.get("lfm2_vl"), tiny.Maker("lfm2_vl")
    config = family.tiny_config()
    pictures = [maker.picture(number) for number in (1, 0, 1)]
    rows = [tiny.Row([maker.text(3), pictures[0], pictures[1], maker.text(4)]), tiny.Row([pictures[2], maker.text(2)])]
    inputs = maker.inputs(rows)
    columns = {"image": int((inputs["input_ids"] == config.image_token_id).sum())}
    shapes = family.media(config, inputs, columns)["image"]
    assert [len(shape.crops) for shape in shapes] == [2, 0, 2]
    assert sum(shape.grid_tokens for shape in shapes) == columns["image"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inputs: inputs.pop("spatial_shapes"), "pass everything the processor returned"),
        (lambda inputs: inputs.update(spatial_shapes=inputs["spatial_shapes"][:1]), "more image placeholder tokens"),
        (lambda inputs: inputs.update(spatial_shapes=inputs["spatial_shapes"].repeat(2, 1)), "placeholders for 3 tiles"),
        (lambda inputs: inputs["input_ids"].__setitem__((0, 5), 7), "fewer follow each other"),
    ],
)
def test_prompts_that_do_not_fit_their_tiles_are_refused(change, said):
    family, maker = families.get("lfm2_vl"), tiny.Maker("lfm2_vl")
    config = family.tiny_config()
    inputs = maker.inputs([tiny.Row([maker.text(2), maker.picture(1), maker.text(4)])])
    columns = {"image": int((inputs["input_ids"] == config.image_token_id).sum())}
    change(inputs)
    with pytest.raises(InputError, match=said):
        family.media(config, inputs, columns)


def test_layers_without_attention_are_the_convolutions():
    family = families.get("lfm2_vl")
    config = family.tiny_config()
    assert family.stateful_layers(config) == {0, 2, 3, 5} and family.full_layers(config) == (1, 4)
    assert torch.tensor([layer.state is not None for layer in family.model_shape(config).decoder.layer_shapes]).sum() == 4
