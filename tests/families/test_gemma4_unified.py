"""Gemma 4 without encoders: the grids of Gemma 4, whose patches the processor has merged already."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate import families
from foveate.errors import UnsupportedModel
from foveate.families import family_for
from tests import tiny

pytestmark = pytest.mark.runs("gemma4_unified")


@pytest.fixture
def config() -> Any:
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedVisionConfig

    return Gemma4UnifiedConfig(vision_config=Gemma4UnifiedVisionConfig())


def merged(high: int, wide: int, most: int) -> torch.Tensor:
    """Places (x, y) [1, most, 2] as the processor gives them for so many merged patches."""
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    places = torch.full((1, most, 2), -1)
    places[0, : high * wide] = torch.stack([x, y], dim=-1).view(-1, 2)
    return places


def test_sizes_give_the_grids_of_gemma_4_and_those_that_the_places_say(config):
    plain = families.get("gemma4")
    other = plain.tiny_config()
    other.vision_config.patch_size, other.vision_config.pooling_kernel_size = 16, 3
    sizes = [(640, 480), (1, 1), (5, 900), (4000, 3000), (48, 48)]
    family = family_for(config)
    for size, shape, known in zip(
        sizes, family.media_of_images(config, sizes), plain.media_of_images(other, sizes), strict=True
    ):
        assert shape.grid == known.grid, size
        assert shape.encoder_sequences == (280,)
        places = merged(*shape.grid[1:], 280)
        assert family.media(config, {"image_position_ids": places}, {"image": shape.tokens, "video": 0})["image"] == [shape]
    video = family.media_of_video(config, (640, 480), 3)
    assert video.grid == plain.media_of_video(other, (640, 480), 3).grid and video.encoder_sequences == (70,) * 3


def test_the_features_of_a_cell_are_at_its_token():
    model = tiny.tiny_model("gemma4_unified")
    pixels, places = torch.rand(1, 20, 108), merged(4, 5, 20)
    with torch.no_grad():
        before = torch.cat(model.model.get_image_features(pixels, places).pooler_output)
        for cell in (0, 4, 5, 19):
            other = pixels.clone()
            other[0, cell] = torch.rand(108)
            after = torch.cat(model.model.get_image_features(other, places).pooler_output)
            assert (after != before).any(1).nonzero().flatten().tolist() == [cell]


def test_what_gemma_4_refuses_is_refused(config):
    from transformers import Gemma4UnifiedConfig

    with pytest.raises(UnsupportedModel, match="no vision encoder"):
        family_for(Gemma4UnifiedConfig(vision_config=None))
    text = {"use_bidirectional_attention": "all"}
    with pytest.raises(UnsupportedModel, match="both directions everywhere"):
        family_for(Gemma4UnifiedConfig(text_config=text, vision_config=config.vision_config))
