"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: audio is text to a plan, positions come from brackets, frames of a video."""

from __future__ import annotations

import random

import pytest
import torch

import foveate
from foveate import families
from foveate.cost.flops import lm_head_flops
from foveate.errors import InputError, UnsupportedModel
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns

NAMES = [name for name in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker") if name in tiny.ALL_FAMILIES]
UNITS = {"qwen2_5_omni_thinker": 28, "qwen3_omni_moe_thinker": 32}
every_thinker = pytest.mark.parametrize("name", NAMES)
LOGITS = 2e-4
AUDIO, AUDIO_START, AUDIO_END = 94, 95, 96


def published(name):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[families.get(name).model_types[0]]()


def heard(model, name, with_picture=True):
    """A prompt with a sound, and a picture behind it."""
    maker = tiny.Maker(name)
    sound = torch.randn(1, 8, 40, generator=maker.random)
    frames = torch.ones(1, 40, dtype=torch.long)
    frames[0, 32:] = 0
    with torch.no_grad():
        count = len(model.model.get_audio_features(sound, frames).last_hidden_state)
    run = torch.tensor([AUDIO_START, *[AUDIO] * count, AUDIO_END])
    inputs = maker.inputs([tiny.Row([maker.text(4), run, maker.text(3), maker.picture(0), maker.text(6)])])
    return inputs | {"input_features": sound, "feature_attention_mask": frames}


@every_thinker
@pytest.mark.parametrize("plan", ["random(site=pre_llm, keep=0.5)", "random(layer=2, keep=0.5)", "fastv(layer=2, keep=0.4)"])
def test_a_plan_drops_visual_tokens_and_no_sound(name, plan):
    model = tiny.tiny_model(name)
    inputs = heard(model, name)
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        pruned = tiny.generate(model, inputs)
        alive = alive_columns(attachment.trace, inputs)[0]
    gone = inputs["input_ids"][~alive]
    assert len(gone) and bool((gone == 90).all())
    layer = 0 if "pre_llm" in plan else 2
    with dense_reference(model, {layer: alive}):
        dense = tiny.generate(model, inputs, use_cache=False)
    assert torch.equal(pruned.sequences, dense.sequences)
    assert tiny.greatest_difference(pruned, dense) < LOGITS


@every_thinker
def test_the_sound_reaches_the_answer(name):
    model = tiny.tiny_model(name)
    inputs = heard(model, name)
    with foveate.attach(model, "random(layer=2, keep=0.5)"):
        first = tiny.generate(model, inputs, tokens=1)
        other = tiny.generate(model, inputs | {"input_features": inputs["input_features"] * -2}, tokens=1)
    assert tiny.greatest_difference(first, other) > 1e-5  # without it there is none at all


@every_thinker
def test_a_video_with_its_sound_in_between_is_one_medium(name):
    """As the processor writes it with load_audio_from_video: chunks of frames and of sound take turns."""
    family = families.get(name)
    config = family.tiny_config()
    inputs = {"video_grid_thw": torch.tensor([[2, 4, 4]])}
    (shape,) = family.media(config, inputs, {"image": 0, "video": 8})["video"]
    assert (shape.kind, shape.grid) == ("video", (2, 2, 2))


@every_thinker
def test_frames_of_a_video_have_the_size_of_the_processor(name):
    rules = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    family, config, unit, rng = families.get(name), published(name), UNITS[name], random.Random(0)
    for _ in range(1000):
        width, height, frames = rng.randint(20, 3000), rng.randint(20, 3000), rng.randint(1, 60)
        high, wide = rules.smart_resize(height, width, unit, 128 * unit**2, 768 * unit**2)
        shape = family.media_of_video(config, (width, height), frames)
        assert shape.grid == (-(-frames // 2), high // unit, wide // unit)
    with pytest.raises(InputError, match="a video has at least 1"):
        family.media_of_video(config, (640, 480), 0)


@every_thinker
def test_logits_are_counted_for_every_column(name):
    decoder = families.get(name).model_shape(families.get(name).tiny_config()).decoder
    assert lm_head_flops(decoder, 30) == 30 * lm_head_flops(decoder) == 30 * 2 * 32 * 99


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_the_whole_model_is_refused_and_says_which_part_is_served(model_type):
    from transformers import CONFIG_MAPPING

    with pytest.raises(UnsupportedModel, match=r"attach a plan to its \.thinker"):
        families.family_for(CONFIG_MAPPING[model_type]())
