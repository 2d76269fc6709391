"""Video-LLaVA: columns of images and videos, and the class token in front of each frame."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate import families
from foveate.cost.presets import load_preset
from foveate.errors import InputError
from foveate.families import family_for
from tests import tiny
from tests.families.features import check_frames, flat, on_grid
from tests.families.processors import image

SIZES = [(640, 480), (224, 224), (20, 900)]


def config_of(**changes):
    from transformers import AutoConfig

    preset = load_preset("llava-1.5-7b") | {"model_type": "video_llava", "video_token_index": 32001} | changes
    preset["vision_config"] |= {"image_size": 224}
    return AutoConfig.for_model(**preset)


def rules(strategy="default"):
    """What the expansion of placeholders reads of a processor; the whole one needs a video processor, thus torchvision."""
    from transformers import VideoLlavaProcessor

    if not hasattr(VideoLlavaProcessor, "replace_image_token"):
        pytest.skip("this transformers expands placeholders in another place")
    made = SimpleNamespace(patch_size=14, num_additional_image_tokens=1, vision_feature_select_strategy=strategy)
    made.image_token = made.video_token = "v"
    made.image_columns = lambda inputs, number: len(VideoLlavaProcessor.replace_image_token(made, inputs, number))
    made.video_columns = lambda inputs, number: len(VideoLlavaProcessor.replace_video_token(made, inputs, number))
    return made


def image_inputs():
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

    return VideoLlavaImageProcessor()(images=[image(*size) for size in SIZES], return_tensors="pt")


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_images_fill_the_columns_that_the_processor_makes(strategy):
    config, inputs = config_of(vision_feature_select_strategy=strategy), image_inputs()
    columns = sum(rules(strategy).image_columns(inputs, number) for number in range(3))
    family = family_for(config)
    shapes = family.media(config, inputs, {"image": columns, "video": 0})["image"]
    assert shapes == family.media_of_images(config, SIZES)
    assert (shapes[0].grid, shapes[0].separators) == ((1, 16, 16), (0,) if strategy == "full" else ())
    with pytest.raises(InputError, match="placeholders for 2 images, but pixel values for 3 are given"):
        family.media(config, inputs, {"image": columns * 2 // 3, "video": 0})


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_videos_fill_the_columns_that_the_processor_makes(strategy):
    # Whatever the images do, frames keep their class tokens.
    config, inputs = config_of(vision_feature_select_strategy=strategy), {"pixel_values_videos": torch.zeros(2, 8, 3, 224, 224)}
    columns = [rules(strategy).video_columns(inputs, number) for number in range(2)]
    family = family_for(config)
    shapes = family.media(config, inputs, {"image": 0, "video": sum(columns)})["video"]
    assert shapes == [family.media_of_video(config, (640, 480), 8)] * 2
    assert [shape.tokens for shape in shapes] == columns == [2056] * 2
    assert shapes[0].grid == (8, 16, 16) and shapes[0].separators == tuple(range(0, 2056, 257))


def test_the_features_of_a_frame_s_region_are_at_its_cell_and_its_class_token_in_front():
    model, family = tiny.tiny_model("video_llava"), families.get("video_llava")
    shape = family.media_of_video(model.config, (24, 24), 2)

    def features(video):
        return flat(model.model.get_video_features(video))

    check_frames(shape, 24, features)
    video = torch.randn(1, 2, 3, 24, 24)
    with torch.no_grad():
        states = model.model.video_tower(video[0], output_hidden_states=True).hidden_states[-2]
        expected = model.model.multi_modal_projector(states[:, 0])
        assert torch.allclose(features(video)[~on_grid(shape)], expected, atol=1e-6)


def test_the_features_of_an_image_s_region_are_at_its_cell():
    model, family = tiny.tiny_model("video_llava"), families.get("video_llava")
    (shape,) = family.media_of_images(model.config, [(24, 24)])
    assert shape.separators == ()
    # An image is encoded like a video of one frame, without the class token.
    check_frames(shape, 24, lambda video: flat(model.model.get_image_features(video[0])))


def test_videos_without_frames_are_refused():
    config = config_of()
    with pytest.raises(InputError, match="pixel_values_videos is missing, which says how many frames there are"):
        family_for(config).media(config, {}, {"image": 0, "video": 2056})
    with pytest.raises(InputError, match="a video has at least 1"):
        family_for(config).media_of_video(config, (64, 64), 0)
