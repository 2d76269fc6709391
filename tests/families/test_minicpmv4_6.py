"""MiniCPM-V 4.6: slices by image size as the processor makes them, which of them make one image, four times as many tokens."""

from __future__ import annotations

import random
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate import families
from foveate.cost.flops import encoder_flops, projector_flops
from foveate.errors import InputError, UnsupportedCombination
from foveate.families.minicpmv4_6 import _medium as medium_of
from tests import tiny

pytestmark = pytest.mark.skipif(
    find_spec("transformers.models.minicpmv4_6") is None, reason="this transformers does not have it"
)
SIZES = [(300, 300), (448, 448), (449, 448), (1600, 500), (500, 1600), (20, 900), (3, 3), (1900, 1400), (2700, 300)]


def config_of(mode: str = "16x") -> Any:
    config = families.get("minicpmv4_6").tiny_config()
    config.vision_config.patch_size, config.downsample_mode = 14, mode
    return config


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_slices_are_those_of_the_processor(mode):
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    processor, side = MiniCPMV4_6ImageProcessorPil(downsample_mode=mode), 2 if mode == "4x" else 4
    generator = random.Random(0)
    sizes = SIZES + [(generator.randint(1, 2500), generator.randint(1, 2500)) for _ in range(12)]
    for size, medium in zip(sizes, families.get("minicpmv4_6").media_of_images(config_of(mode), sizes), strict=True):
        made = processor(Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)), return_tensors="pt")
        expected = [(1, int(high) // side, int(wide) // side) for high, wide in made["target_sizes"]]
        assert [medium.grid, *medium.crops] == expected, size
        assert medium.encoder_tokens == made["pixel_values"].shape[-1] // 14


def test_what_stands_in_front_of_a_slice_tells_which_make_one_image():
    family, maker = families.get("minicpmv4_6"), tiny.Maker("minicpmv4_6")
    config = family.tiny_config()
    pictures = [maker.picture(number) for number in (1, 1, 0)]
    rows = [tiny.Row([maker.text(3), pictures[0], pictures[1], maker.text(4)]), tiny.Row([maker.text(2), pictures[2]])]
    inputs = maker.inputs([*rows, tiny.Row([maker.text(5)])])
    columns = {"image": int((inputs["input_ids"] == config.image_token_id).sum()), "video": 0}
    shapes = family.media(config, inputs, columns)["image"]
    assert [len(shape.crops) for shape in shapes] == [2, 2, 0]
    assert sum(shape.grid_tokens for shape in shapes) == columns["image"]


def test_frames_of_a_video_stand_apart():
    family, maker = families.get("minicpmv4_6"), tiny.Maker("minicpmv4_6")
    model = tiny.tiny_model("minicpmv4_6")
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(0, "video"), maker.picture(0), maker.text(4)])])
    with torch.no_grad(), foveate.attach(model, "random(layer=1, keep=0.5)") as attachment:
        model(**inputs)
    assert sorted(entry.medium.shape.kind for entry in attachment.trace) == ["image", "video", "video", "video"]
    assert family.title == "MiniCPM-V 4.6"


def test_a_call_that_asks_for_four_times_as_many_tokens_is_understood():
    family, model = families.get("minicpmv4_6"), tiny.tiny_model("minicpmv4_6")
    config, maker = model.config, tiny.Maker("minicpmv4_6")
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(0), maker.text(4)])])
    more = torch.full((1, 6), config.image_token_id)  # four for each of the two tokens
    ids = torch.cat([inputs["input_ids"][:, :4], more, inputs["input_ids"][:, 4:]], dim=1)
    call = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "downsample_mode": "4x"}
    for run in (lambda: model(**call), lambda: tiny.generate(model, call, 3)):
        with torch.no_grad(), foveate.attach(model, "random(layer=1, keep=0.5)") as attachment:
            run()
        assert attachment.trace.media[0].medium.shape.grid == (1, 2, 4)
        assert len(attachment.trace.media[0].kept_index) == 4
    assert family.media_of_images(config_of("4x"), [(448, 448)])[0].grid == (1, 16, 16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inputs: inputs.pop("target_sizes"), "pass everything the processor returned"),
        (lambda inputs: inputs.update(target_sizes=inputs["target_sizes"][:1]), "more placeholder tokens than its slices fill"),
        (lambda inputs: inputs.update(target_sizes=inputs["target_sizes"].repeat(2, 1)), "placeholders for 3 slices"),
        (lambda inputs: inputs.update(target_sizes=inputs["target_sizes"] * 2), "fewer follow each other"),
    ],
)
def test_prompts_that_do_not_fit_their_slices_are_refused(change, said):
    family, maker = families.get("minicpmv4_6"), tiny.Maker("minicpmv4_6")
    config = family.tiny_config()
    inputs = maker.inputs([tiny.Row([maker.text(2), maker.picture(1), maker.text(4)])])
    columns = {"image": int((inputs["input_ids"] == config.image_token_id).sum()), "video": 0}
    change(inputs)
    with pytest.raises(InputError, match=said):
        family.media(config, inputs, columns)


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_encoding_costs_what_torch_counts_in_either_mode(mode):
    family, maker = families.get("minicpmv4_6"), tiny.Maker("minicpmv4_6")
    model = tiny.tiny_model("minicpmv4_6")
    model.set_attn_implementation("eager")
    inputs = maker.picture(1).inputs
    tiles = [(int(high), int(wide)) for high, wide in inputs["target_sizes"]]
    side, shape = 2 if mode == "4x" else 4, family.model_shape(model.config)
    medium = medium_of("image", tiles, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.get_image_features(**inputs, downsample_mode=mode)
    assert encoder_flops(shape.encoder, medium) + projector_flops(shape, medium) == counter.get_total_flops()


def test_a_video_is_refused_where_one_medium_is_asked_for():
    with pytest.raises(UnsupportedCombination, match="each frame of a video as a medium of its own"):
        foveate.estimate(config_of(), "random(layer=1, keep=0.5)", images=[(640, 480)], frames=8)


def expanded(kind: str, tiles: list[tuple[int, int]], grids: list[tuple[int, int]]) -> str:
    """What the processor writes in place of a picture, or of a video of as many frames as there are grids of slices."""
    from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor as Processor

    marks = dict(image_start_token="[", image_end_token="]", slice_start_token="(", slice_end_token=")")
    parts = SimpleNamespace(**marks, image_token="I", video_token="V", slice_mode=True, video_slice_mode=True)
    sizes, layouts = np.array(tiles), np.array(grids)
    if kind == "image":
        made = {"grids": layouts, "num_patches_per_image": layouts.prod(-1) + 1, "target_sizes": sizes}
        return Processor.replace_image_token(parts, made, 0, image_token_divisor=16)
    made = {"grids_videos": layouts, "num_frames_per_video": np.array([len(grids)]), "target_sizes_videos": sizes}
    return Processor.replace_video_token(parts, made, 0, video_token_divisor=16)


def test_prompts_that_the_processor_writes_are_read():
    config = config_of()
    pictures = [([(8, 8), *[(8, 4)] * 4], [(2, 2)]), ([(4, 8)], [(0, 0)]), ([(8, 8), *[(4, 8)] * 2], [(1, 2)])]
    frames, grids = [(8, 8), *[(8, 4)] * 2] * 2, [(2, 1)] * 2
    texts = [expanded("image", *picture) for picture in pictures]
    assert texts[0] == "[IIII](II)(II)\n(II)(II)" and texts[1] == "[II]"
    prompt = f"ab{texts[0]}{texts[1]}c{expanded('video', frames, grids)}{texts[2]}d"
    ids = {"I": config.image_token_id, "V": config.video_token_id}
    inputs = {
        "input_ids": torch.tensor([[ids.get(letter, 1000 + ord(letter)) for letter in prompt]]),
        "target_sizes": torch.tensor([tile for tiles, _ in pictures for tile in tiles]),
        "target_sizes_videos": torch.tensor(frames),
    }
    columns = {"image": prompt.count("I"), "video": prompt.count("V")}
    shapes = families.get("minicpmv4_6").media(config, inputs, columns)
    assert [shape.grids for shape in shapes["image"]] == [
        ((1, 2, 2), *[(1, 2, 1)] * 4), ((1, 1, 2),), ((1, 2, 2), *[(1, 1, 2)] * 2),
    ]  # fmt: skip
    assert [shape.grids for shape in shapes["video"]] == [((1, 2, 2), *[(1, 2, 1)] * 2)] * 2
