"""Traces of plans on tiny models, with the parts that views draw of them."""

from __future__ import annotations

import json
import re
from typing import Any

from PIL import Image
from torch import nn

import foveate
from foveate.core.trace import MediumTrace
from foveate.viz.merge_page import MergeHeading, merge_page
from foveate.viz.parts import Moment, Part, at_moment, parts_of, video_parts
from tests import tiny

MERGES = "partition(site=vision, layer=1, keep=0.6) | partition(layer=2, keep=0.5)"
DROPS = "random(site=pre_llm, keep=0.5) | fastv(layer=3, keep=0.5)"
BOTH = "partition(site=vision, layer=1, keep=0.7) | fastv(layer=3, keep=0.5)"
OVERLAPS = "illava_v2(layer=2, keep=0.4)"
Drawn = list[tuple[MediumTrace, list[Part]]]


def picture(number: int = 0) -> Image.Image:
    return Image.effect_mandelbrot((96, 96), (-2 + number / 4, -1.5, 1, 1.5), 40).convert("RGB")


def run(model: nn.Module, maker: tiny.Maker, plan: str, media: list[Any]) -> list[MediumTrace]:
    inputs = maker.inputs([tiny.Row([maker.text(4), *media, maker.text(5)])])
    with foveate.attach(model, plan) as attachment:
        tiny.generate(model, inputs, tokens=1)
        return attachment.trace.media


def pictures(plan: str, count: int = 1, family: str = "llava") -> Drawn:
    maker = tiny.Maker(family)
    media = run(tiny.tiny_model(family), maker, plan, [maker.picture(2) for _ in range(count)])
    return [(entry, parts_of(entry.medium.shape, f"p{n}.png", [picture(n)])) for n, entry in enumerate(media)]


def film(plan: str, count: int = 4) -> Drawn:
    """Frames that are pictures to the model."""
    drawn = pictures(plan, count)
    return [
        (entry, at_moment(parts, Moment(0, "clip.mp4", n + 1, n + 1, count, n / 2))) for n, (entry, parts) in enumerate(drawn)
    ]


def whole_video(plan: str) -> Drawn:
    """A video that is one medium, of two frames for each row of tokens."""
    maker = tiny.Maker("qwen2_5_vl")
    (entry,) = run(tiny.tiny_model("qwen2_5_vl"), maker, plan, [maker.picture(kind="video")])
    frames = 2 * entry.medium.shape.grid[0]
    shown = video_parts(entry.medium.shape, "clip.mp4", 0, [picture(n) for n in range(frames)], [n / 2 for n in range(frames)])
    return [(entry, shown)]


def page_of(drawn: Drawn, plan: str = "plan", question: str = "what?") -> str:
    return merge_page(drawn, MergeHeading(plan, question, "Model"))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r"^const data = (.*);$", page, re.MULTILINE)
    assert found is not None
    return json.loads(found[1])
