"""Qwen3-VL: videos whose frames stand apart behind timestamps, their resize rule, and DeepStack as the config tells it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from foveate.core.layout import Layout
from foveate.cost.presets import load_preset
from foveate.errors import InputError, UnsupportedModel
from foveate.families import family_for, get


def config_of(**vision):
    from transformers import AutoConfig

    preset = load_preset("qwen3-vl-8b")
    preset["vision_config"] |= vision
    return AutoConfig.for_model(**preset)


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.full)])
def test_videos_of_many_sizes_give_the_grids_of_the_resize_rule(count):
    found = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    config, rng = config_of(), random.Random(0)
    if found.smart_resize(29, 323, 2788, 2, 32, 4_096, 25_165_824) != (10 * 32, 87 * 32):
        pytest.skip("this version of transformers scales long videos otherwise")
    for _ in range(count):
        width, height, frames = rng.randint(1, 4000), rng.randint(20, 3000), rng.randint(2, 900)
        try:
            high, wide = found.smart_resize(frames, height, width, 2, 32, 4_096, 25_165_824)
        except ValueError:
            with pytest.raises(InputError, match="at most 200 times"):
                family_for(config).media_of_video(config, (width, height), frames)
            continue
        shape = family_for(config).media_of_video(config, (width, height), frames)
        assert shape.grid == ((frames + 1) // 2, high // 32, wide // 32), (width, height, frames)
        assert shape.encoder_tokens == (frames + 1) // 2 * high * wide // 256


@pytest.mark.parametrize(("size", "frames", "words"), [((640, 480), 1, "at least 2 frames"), ((0, 480), 8, "at least 1")])
def test_a_video_that_the_processor_refuses_is_refused(size, frames, words):
    config = config_of()
    with pytest.raises(InputError, match=words):
        family_for(config).media_of_video(config, size, frames)


def test_the_frames_of_a_video_are_found_behind_their_timestamps():
    from transformers import Qwen3VLProcessor

    # The processor's own expansion; a whole processor would need video decoding.
    parts = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        video_token="V",
        vision_start_token="[",
        vision_end_token="]",
        _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(None, *given),
    )
    if not hasattr(Qwen3VLProcessor, "replace_video_token"):
        pytest.skip("this version writes videos where it also decodes them")
    grid = torch.tensor([[3, 4, 6]])
    metadata = SimpleNamespace(fps=2, frames_indices=[0, 1, 2, 3, 4])
    text = Qwen3VLProcessor.replace_video_token(parts, {"video_grid_thw": grid, "video_metadata": [metadata]}, 0)
    assert text == "".join(f"<{seconds} seconds>[VVVVVV]" for seconds in ("0.2", "1.2", "2.0"))
    config = config_of()
    family = family_for(config)
    media = family.media(config, {"video_grid_thw": grid}, {"image": 0, "video": 18})["video"]
    is_visual = torch.tensor([[letter == "V" for letter in text]])
    (medium,) = Layout.build(is_visual, torch.ones_like(is_visual), [media]).media
    assert medium.shape.grid == (3, 2, 3)
    assert [text[int(frame[0]) - 1] + text[int(frame[-1]) + 1] for frame in medium.columns.view(3, 6)] == ["[]"] * 3


def test_features_are_stacked_behind_as_many_layers_as_the_encoder_has_mergers_for():
    config = config_of()
    assert family_for(config).stacked_features(config).layers == 3
    assert len(family_for(config).model_shape(config).projector) == 8
    config = config_of(deepstack_visual_indexes=[5])
    assert family_for(config).stacked_features(config).layers == 1


def test_features_behind_the_last_layer_are_refused():
    with pytest.raises(UnsupportedModel, match="nothing runs after the last one"):
        family_for(config_of(deepstack_visual_indexes=list(range(36))))


def test_layers_without_experts_are_told_apart():
    family = get("qwen3_vl_moe")
    layers = family.model_shape(family.tiny_config()).decoder.layer_shapes
    assert [layer.intermediate for layer in layers] == [32, 32, 32, 64, 32]
    assert [layer.other_weights for layer in layers] == [192, 192, 192, 0, 192]
