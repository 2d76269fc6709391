"""PixelPrune against a plain loop, on copies, edges and broken pixels; and in an encoder whose picture is half blank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.view import Pixels
from foveate.errors import PlanError, UnsupportedCombination
from foveate.methods.pixelprune import PixelPrune
from tests import tiny
from tests.methods.selecting import KEEPS, kept_of
from tests.oracles.contract import random_view
from tests.oracles.selectors import differences, pixelprune_kept


def view_of(pixels: Tensor, grid: tuple[int, int, int]):
    return replace(random_view(PixelPrune(), grid, 0, groups=len(pixels)), observed={Pixels(): pixels})


@pytest.mark.parametrize("grid", [(1, 4, 6), (2, 3, 4), (1, 1, 9), (1, 9, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_twin(grid, seed):
    count = grid[0] * grid[1] * grid[2]
    pixels = torch.rand(3, count, 5, generator=torch.Generator().manual_seed(seed))
    pixels[1, : count // 2] = pixels[1, 0]  # copies
    view = view_of(pixels, grid)
    scores = PixelPrune().score(view)
    for group in range(3):
        places = view.coords[group].tolist()
        assert scores[group].tolist() == pytest.approx(differences(pixels[group], places), abs=2e-6)
        for keep in (1, count // 3, count - 1, count):
            assert kept_of(PixelPrune(), view, keep)[group] == pixelprune_kept(pixels[group], places, keep)


@pytest.mark.parametrize("keep", KEEPS)
def test_copies_go_first_and_the_first_of_them_stays(keep):
    pixels = torch.zeros(1, 24, 4)
    marked = [3, 10, 17]  # squares that differ: each is seen by itself and by the squares right of it and below
    pixels[0, marked] = torch.tensor([0.3, 0.6, 1.0])[:, None]
    (kept,) = kept_of(PixelPrune(), view_of(pixels, (1, 4, 6)), keep)
    assert kept[0] == 0 and len(kept) == keep
    assert keep < 7 or set(marked) <= set(kept)


def test_squares_whose_neighbour_is_gone_are_compared_with_none():
    view = view_of(torch.zeros(1, 24, 4), (1, 4, 6))
    left = torch.tensor([[0, 2, 4, 14]])
    view = replace(
        view, features=view.features[:, left[0]], coords=view.coords[:, left[0]], sizes=view.sizes[:, left[0]], grid=None,
        observed={Pixels(): torch.zeros(1, 4, 4)},
    )  # fmt: skip
    assert PixelPrune().score(view).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_pixels_of_a_picture_change_no_other(value):
    pixels = torch.rand(2, 24, 4, generator=torch.Generator().manual_seed(0))
    expected = PixelPrune().score(view_of(pixels, (1, 4, 6)))[0]
    pixels[1, 5] = value
    assert torch.equal(PixelPrune().score(view_of(pixels, (1, 4, 6)))[0], expected)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_repeats_never_enters_the_encoder_and_the_count_follows_the_picture(family):
    model, maker = tiny.tiny_model(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(0), maker.text(3), maker.picture(1), maker.text(5)])])
    first, _ = inputs["image_grid_thw"].prod(1).tolist()
    inputs["pixel_values"][: first // 2] = 0.0  # the upper half of the first picture is blank
    lengths: list[int] = []
    layer = tiny.towers_of(model)[0].blocks[0]
    layer.register_forward_hook(lambda _, args, output: lengths.append(output.shape[0]))
    with torch.no_grad():
        model(**inputs)
        with foveate.attach(model, "pixelprune(site=vision, layer=0, keep=threshold:0.01)") as attachment:
            out = model(**inputs)
            counts = [len(entry.kept_index) for entry in attachment.trace.media]
            whole = [entry.medium.shape.grid_tokens for entry in attachment.trace.media]
    assert counts[0] < whole[0] and counts[1] == whole[1] and counts[0] >= whole[0] // 2
    assert lengths[1] < lengths[0]
    assert not out.logits.isnan().any()


@pytest.mark.parametrize(
    ("family", "plan", "error", "says"),
    [
        ("llava", "pixelprune(site=vision, layer=0, keep=0.5)", UnsupportedCombination, "takes whole images"),
        ("pixtral", "pixelprune(site=vision, layer=0, keep=0.5)", UnsupportedCombination, "takes whole images"),
        ("qwen2_5_vl", "pixelprune(site=pre_llm, keep=0.5)", PlanError, "cannot act at site"),
    ],
)
def test_where_pixels_are_not_seen_it_is_refused(family, plan, error, says):
    with pytest.raises(error, match=says):
        foveate.attach(tiny.tiny_model(family), plan)
