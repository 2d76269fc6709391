"""Methods for video, on videos: what is left of them equals the dense reference, and what did not change goes first."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import families
from tests import tiny
from tests.engine.test_oracles import check_against_the_reference

PLANS = ("evs(site=pre_llm, keep=0.6)", "vidcom2(site=pre_llm, keep=0.6)", "pool3d(site=pre_llm)")


def rows_with_videos(maker: tiny.Maker) -> list[tiny.Row]:
    """Prompts of unequal length with one and two videos."""
    beside = maker.picture(1, *([] if "video" in families.get(maker.family).placeholders else ["video"]))
    return [
        tiny.Row([maker.text(4), maker.picture(0, "video"), maker.text(3), beside, maker.text(5)]),
        tiny.Row([maker.picture(1, "video"), maker.text(6)]),
    ]


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
@pytest.mark.parametrize("plan", PLANS)
def test_what_is_left_of_videos_equals_the_dense_reference(model_of, family, plan):
    maker = tiny.Maker(family)
    check_against_the_reference(model_of(family), maker.inputs(rows_with_videos(maker)), plan)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "video_llama_3"])
def test_evs_drops_a_frame_that_shows_what_the_one_before_it_shows(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(1, "video"), maker.text(5)])])
    t, h, w = families.get(family).media(model.config, inputs, {"image": 0, "video": 3})["video"][0].grid
    assert t == 3
    first, _, last = inputs["pixel_values_videos"].chunk(t)
    inputs["pixel_values_videos"] = torch.cat([first, first, last])
    with torch.no_grad(), foveate.attach(model, f"evs(site=pre_llm, keep={2 * h * w})") as attachment:
        model(**inputs)
        kept = attachment.trace.media[0].kept_index.tolist()
    assert kept == [*range(h * w), *range(2 * h * w, 3 * h * w)]


TILED = ("internvl", "llava_onevision", "idefics3", "qwen2_5_vl")
SHOWN = [(name, kind) for name in TILED for kind in ("image", "video") if kind == "image" or name in tiny.VIDEO_FAMILIES]


@pytest.mark.parametrize(("family", "kind"), SHOWN)
def test_crops_of_an_image_are_no_frames_to_what_pools_over_time(model_of, family, kind):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(0, kind), maker.text(5)])])
    with torch.no_grad(), foveate.attach(model, "pool3d(site=pre_llm, time=2, size=2)") as attachment:
        model(**inputs)
        medium = attachment.trace.media[0]
        report = attachment.report()
    grids = medium.medium.shape.grids
    assert (max(t for t, _, _ in grids) > 1) == (kind == "video")
    counts = [-(-t // 2) * -(-h // 2) * -(-w // 2) for t, h, w in grids]
    assert len(medium.kept_index) == sum(counts)
    assert report.estimate is not None
    assert report.estimate.visual_tokens_per_layer[1][0] == sum(counts) + len(medium.medium.shape.separators)
