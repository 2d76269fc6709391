"""GLM-4.1V and its successors: grids of their resize rule, frames of a video behind image placeholders, experts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foveate import families
from foveate.core.layout import Layout
from foveate.cost.presets import load_preset
from foveate.errors import InputError, UnsupportedCombination
from foveate.families import family_for
from tests import tiny
from tests.families.processors import image, image_processor

SIZES = [
    (640, 480),
    (1024, 768),
    (28, 28),
    (27, 29),
    (1, 1),
    (5, 900),
    (2500, 13),
    (42, 70),
    (4000, 3000),
    (98, 14),
    (111, 113),
]
NAMES = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga")
every_relative = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.runs(name)) for name in NAMES])
IMAGE, VIDEO = (12_544, 9_633_792), (12_544, 47_040_000)


@pytest.fixture(scope="module")
def config() -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset("glm-4.1v-9b"))


def processor(**options: Any) -> Any:
    return image_processor("glm4v", "glm4v", "Glm4vImageProcessorPil", **options)


@pytest.mark.full
@pytest.mark.parametrize("size", SIZES)
def test_a_size_gives_the_grid_of_the_processor(config, size):
    rules = processor(size={"shortest_edge": IMAGE[0], "longest_edge": IMAGE[1]})
    (t, h, w) = rules(images=[image(*size)], return_tensors="pt")["image_grid_thw"][0].tolist()
    (shape,) = family_for(config).media_of_images(config, [size])
    assert shape.grid == (t, h // 2, w // 2)
    assert shape.encoder_tokens == t * h * w and shape.encoder_sequences == (h * w,)


@pytest.mark.parametrize(("kind", "bounds"), [("image", IMAGE), ("video", VIDEO)])
def test_many_sizes_give_the_grids_of_the_resize_rule(config, kind, bounds):
    found = pytest.importorskip("transformers.models.glm4v.image_processing_pil_glm4v")
    family, rng = family_for(config), random.Random(0)
    for _ in range(3000):
        width, height = rng.randint(1, 4500), rng.choice([rng.randint(1, 60), rng.randint(1, 4500)])
        frames = 2 if kind == "image" else rng.randint(2, 600)
        try:
            high, wide = found.smart_resize(frames, height, width, 2, 28, *bounds)
        except ValueError:
            with pytest.raises(InputError, match="at most 200 times the shorter"):
                family.media_of_video(config, (width, height), frames)
            continue
        if kind == "image":
            (shape,) = family.media_of_images(config, [(width, height)])
        else:
            shape = family.media_of_video(config, (width, height), frames)
        assert shape.grid == ((frames + 1) // 2, high // 28, wide // 28), (width, height, frames)
        assert shape.encoder_sequences == (high * wide // 196,) * ((frames + 1) // 2)


@pytest.mark.runs("glmga")
def test_longer_videos_of_glmga_keep_more_pixels():
    from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

    family = families.get("glmga")
    config = family.tiny_config()
    config.vision_config.patch_size = 14
    for frames, width, height in ((2, 640, 480), (600, 640, 480), (300, 1920, 1080), (1000, 64, 90)):
        high, wide = smart_resize(frames, height, width, 2, 28, 12_544, 87_478_720)
        assert family.media_of_video(config, (width, height), frames).grid == (frames // 2, high // 28, wide // 28)


def test_a_video_of_one_frame_and_a_picture_without_a_side_are_refused(config):
    with pytest.raises(InputError, match="videos of at least 2 frames"):
        family_for(config).media_of_video(config, (640, 480), 1)
    with pytest.raises(InputError, match="both sides are at least 1"):
        family_for(config).media_of_images(config, [(0, 480)])


@every_relative
def test_the_features_of_a_region_are_at_its_cell_of_the_grid(name):
    # 24 x 16 pixels in patches of 4: 3 x 2 cells of 8 x 8 pixels.
    rules = processor(patch_size=4, size={"shortest_edge": 1, "longest_edge": 10_000})
    plain, model = image(24, 16), tiny.tiny_model(name)
    (shape,) = families.get(name).media(model.config, rules(images=[plain], return_tensors="pt"), {"image": 6})["image"]
    assert shape.grid == (1, 2, 3)
    for cell in range(6):
        other = plain.copy()
        other.paste((250, 10, 200), (cell % 3 * 8, cell // 3 * 8, cell % 3 * 8 + 8, cell // 3 * 8 + 8))
        with torch.no_grad():
            before, after = (
                torch.cat(model.model.get_image_features(**rules(images=[one], return_tensors="pt")).pooler_output)
                for one in (plain, other)
            )
        assert int((after - before).norm(dim=1).argmax()) == cell


def video_text(module: str, name: str, grid: torch.Tensor) -> str:
    """What the processor writes for a video; a whole processor would need video decoding."""
    found = getattr(pytest.importorskip(module), name)
    if not hasattr(found, "replace_video_token"):
        pytest.skip("this transformers builds the video prompt elsewhere")
    parts = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2), image_token="I")
    parts.replace_frame_token_id = lambda *given, **named: found.replace_frame_token_id(parts, *given, **named)
    metadata = SimpleNamespace(fps=2, timestamps=[0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    return found.replace_video_token(parts, {"video_grid_thw": grid, "video_metadata": [metadata]}, 0)


@pytest.mark.parametrize(("name", "processor", "stamps"), [
    ("glm4v", "Glm4vProcessor", ("0", "1", "2")),
    ("glm46v", "Glm46VProcessor", ("0.0 seconds", "1.0 seconds", "2.0 seconds")),
])  # fmt: skip
def test_the_frames_of_a_video_are_found_in_the_prompt_of_the_processor(name, processor, stamps):
    grid = torch.tensor([[3, 4, 6]])
    text = video_text(f"transformers.models.{name}.processing_{name}", processor, grid)
    assert text == "".join(f"<|begin_of_image|>IIIIII<|end_of_image|>{stamp}" for stamp in stamps)
    family = families.get(name)
    inputs = {"video_grid_thw": grid, "pixel_values_videos": torch.zeros(72, 96)}
    media = family.media(family.tiny_config(), inputs, {"image": 18})["image"]
    is_visual = torch.tensor([[letter == "I" for letter in text]])
    (medium,) = Layout.build(is_visual, torch.ones_like(is_visual), [media]).media
    assert (medium.shape.kind, medium.shape.grid) == ("video", (3, 2, 3))
    for frame in medium.columns.view(3, 6).tolist():
        assert text[: frame[0]].endswith("<|begin_of_image|>") and text[frame[-1] + 1 :].startswith("<|end_of_image|>")


@every_relative
def test_tiny_prompts_say_what_is_a_frame_as_the_processor_does(name):
    module = pytest.importorskip("transformers.models.glm4v.processing_glm4v")
    maker = tiny.Maker(name)
    for kind, expected in (("image", {0, 1}), ("video", {0, 2})):
        inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(0, kind), maker.picture(1, kind), maker.text(4)])])
        brackets = SimpleNamespace(video_start_id=94, video_end_id=95, image_token_id=90)
        types = module.Glm4vProcessor.create_mm_token_type_ids(brackets, inputs["input_ids"].tolist())
        assert inputs["mm_token_type_ids"].tolist() == types and {*types[0]} == expected


@every_relative
def test_images_and_videos_in_one_call_are_refused_as_transformers_cannot_take_them(name):
    model, maker = tiny.tiny_model(name), tiny.Maker(name)
    inputs = maker.inputs([tiny.Row([maker.picture(0), maker.text(3), maker.picture(0, "video"), maker.text(4)])])
    with pytest.raises(UnsupportedCombination, match="pass images and videos in different calls"):
        families.get(name).media(model.config, inputs, {"image": 32})
    with pytest.raises((ValueError, RuntimeError)):
        model(**inputs)
    alone = {key: value for key, value in inputs.items() if not key.startswith("pixel_values")}
    with pytest.raises(UnsupportedCombination, match="pass images and videos in different calls"):
        families.get(name).media(model.config, alone, {"image": 32})


@every_relative
def test_the_grids_of_a_turn_before_do_not_count(name):
    family = families.get(name)
    inputs = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "video_grid_thw": torch.tensor([[2, 4, 4]])}
    (shape,) = family.media(family.tiny_config(), inputs | {"pixel_values_videos": torch.zeros(32, 96)}, {"image": 8})["image"]
    assert (shape.kind, shape.grid) == ("video", (2, 2, 2))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_placeholders_without_their_grid_are_refused(config, kind):
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    with pytest.raises(InputError, match=f"the prompt has {kind} placeholders but {kind}_grid_thw is missing"):
        family_for(config).media(config, {pixels: torch.zeros(4, 8)}, {"image": 4})
    assert family_for(config).media(config, {}, {"image": 0}) == {"image": []}


def test_layers_with_experts_are_told_from_those_without():
    for name, dense in (("glm4v_moe", 1), ("glm46v", 2)):
        family = families.get(name)
        layers = family.model_shape(family.tiny_config()).decoder.layer_shapes
        assert [layer.intermediate for layer in layers] == [64] * dense + [3 * 16] * (5 - dense)
        assert [layer.other_weights for layer in layers] == [0] * dense + [6 * 32] * (5 - dense)
    assert families.get("glm4v").model_shape(families.get("glm4v").tiny_config()).decoder.layer_shapes == ()
