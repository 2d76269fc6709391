"""Invariant 9 with stages inside the encoder: a prefill waits once, and again only for numbers that no shape says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import families
from foveate.core.selection import Selection
from foveate.engine import decoder, entrance
from foveate.errors import InputError
from foveate.families import llava_next
from tests import tiny
from tests.engine.test_packed_encoder import FAMILIES as PACKED
from tests.oracles import packed_encoder
from tests.oracles.row_encoder import CONFIGS
from tests.oracles.tiled_encoder import Several, deeper, pictures, with_videos
from tests.syncs import on_device, syncs_of_foveate, weights_on_device

PLANS = (
    "illava_v1(site=vision, layer=2, keep=0.5)",
    "tome(site=vision, layer=0, keep=0.7) | partition(site=vision, layer=2, keep=0.6) | fastv(layer=2, keep=0.5)",
)
every_plan = pytest.mark.parametrize("plan", PLANS)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Where foveate waits in a prefill and in a whole answer, once the values of answers have been checked."""
    monkeypatch.setattr(Selection, "check_values", lambda self, token_count: None)
    monkeypatch.setattr(decoder, "_waits", lambda device: True)

    def count(model: Any, inputs: dict[str, Tensor], plan: str) -> list[str]:
        with torch.no_grad(), foveate.attach(model, plan), weights_on_device(model):
            model(**on_device(inputs), use_cache=True)
            with syncs_of_foveate() as prefill:
                model(**on_device(inputs), use_cache=True)
            found = list(prefill)
            with syncs_of_foveate() as answer:
                tiny.generate(model, on_device(inputs), tokens=3)
            assert len(answer) == len(found), (answer, found)
        return found

    return count


@pytest.mark.pairs
@every_plan
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_are_grids_of_tokens_need_one_wait(waits, name, plan):
    family, make = CONFIGS[name]
    config = make()
    maker = tiny.Maker(family, config=config)
    found = waits(tiny.tiny_model(family, config=config), maker.inputs(tiny.ragged_rows(maker, 3)), plan)
    assert len(found) == 1, found


@pytest.mark.pairs
@every_plan
@pytest.mark.parametrize("family", PACKED)
def test_packed_encoders_read_their_grids_and_their_windows(waits, family, plan):
    config = packed_encoder.deeper(family)
    model, maker = tiny.tiny_model(family, config=config), tiny.Maker(family, config=config)
    found = waits(model, maker.inputs(tiny.ragged_rows(maker, 3)), plan)
    windows = tiny.towers_of(model)[0].config.to_dict().get("fullatt_block_indexes") is not None
    # Windows, behind every stage: in front of layers 0 and 2, which look through them.
    assert len(found) == 2 + (plan.count("site=vision") if windows else 0), found
    assert "layout" in found[0] and ("packed_encoder" in found[1] or "raster_encoder" in found[1])


@pytest.mark.pairs
@every_plan
@pytest.mark.parametrize(
    ("family", "rows", "expected"),
    [
        ("llava_next", pictures, 2),
        ("llava_onevision", pictures, 2),
        ("llava_next_video", with_videos, 2),
        ("llava_onevision", with_videos, 2),
        ("video_llava", with_videos, 1),
    ],
)
def test_padding_and_shrinking_need_a_second_wait(waits, family, rows, expected, plan):
    config = deeper(family)
    maker = tiny.Maker(family, config=config)
    found = waits(tiny.tiny_model(family, config=config), maker.inputs(rows(maker)), plan)
    assert len(found) == expected, found
    assert "layout" in found[0] and (expected == 1 or "entrance" in found[1])


@pytest.mark.pairs
@every_plan
@pytest.mark.parametrize("make", [tiny.Maker, Several])
def test_tiles_without_padding_and_whole_images_need_one(waits, monkeypatch, make, plan):
    family = "llava_next" if make is tiny.Maker else "llava_onevision"
    monkeypatch.setattr(llava_next, "_TINY_SIZES", ((24, 48), (48, 48)))
    config = deeper(family)
    maker = make(family, config=config)
    rows = [
        tiny.Row([maker.text(4), maker.picture(0), maker.text(3), maker.picture(1), maker.text(6)]),
        tiny.Row([maker.text(9)]),
    ]
    found = waits(tiny.tiny_model(family, config=config), maker.inputs(rows), plan)
    assert len(found) == 1, found


@every_plan
def test_a_video_whose_frames_are_averaged_by_whole_squares_needs_one(waits, plan):
    config = deeper("llava_next_video")
    maker = tiny.Maker("llava_next_video", config=config)
    rows = [tiny.Row([maker.text(5), maker.picture(kind="video"), maker.text(7)])]
    found = waits(tiny.tiny_model("llava_next_video", config=config), maker.inputs(rows), plan)
    assert len(found) == 1, found


def test_features_that_the_encoder_did_not_give_are_refused(monkeypatch):
    config = families.get("llava").tiny_config()
    model, maker = tiny.tiny_model("llava", config=config), tiny.Maker("llava", config=config)
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    projector = model.get_submodule("model.multi_modal_projector")
    with torch.no_grad(), foveate.attach(model, "random(site=vision, layer=1, keep=0.5)"):
        handle = projector.register_forward_hook(lambda _, args, output: output.nan_to_num(0.0))
        with pytest.raises(InputError, match="not those that the vision encoder gave"):
            model(**inputs)
        handle.remove()
        assert not model(**inputs).logits.isnan().any()


def test_counts_from_shapes_are_those_of_the_marks(monkeypatch):
    """What is checked once on an accelerator is checked here for every pass: a check that fails is noticed."""
    config = families.get("llava").tiny_config()
    model, maker = tiny.tiny_model("llava", config=config), tiny.Maker("llava", config=config)
    inputs = maker.inputs(tiny.ragged_rows(maker, 2))
    right = entrance._pieces_left
    monkeypatch.setattr(entrance, "_pieces_left", lambda *args: tuple(count - 1 for count in right(*args) or ()))
    refused = pytest.raises(InputError, match="not those that the vision encoder gave")
    with torch.no_grad(), foveate.attach(model, "random(site=vision, layer=1, keep=0.5)"), refused:
        model(**inputs)
