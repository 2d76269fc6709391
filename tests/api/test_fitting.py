"""Pictures scaled to a budget of visual tokens, against what real processors make of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate.api import fitting
from foveate.errors import InputError


class Squares:
    """A processor of one token for each started square of 28 pixels, and at least four."""

    def _get_num_multimodal_tokens(self, image_sizes: Any) -> dict[str, list[int]]:
        return {"num_image_tokens": [max(4, -(-h // 28) * -(-w // 28)) for h, w in image_sizes]}


def qwen(**options: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = Qwen2VLImageProcessorPil(**options)

    class Only:
        """The counting of Qwen2VLProcessor, which needs a tokenizer for nothing else."""

        def _get_num_multimodal_tokens(self, image_sizes: Any) -> dict[str, list[int]]:
            return {"num_image_tokens": [pixels.get_number_of_image_patches(*size, {}) // 4 for size in image_sizes]}

    return Only(), pixels


@given(st.integers(8, 900), st.integers(8, 900), st.integers(4, 1200))
def test_what_comes_out_fits_and_no_larger_size_that_was_tried_would(width, height, budget):
    (fitted,) = foveate.fit_images(Squares(), [Image.new("L", (width, height))], budget)
    count = fitting._counter(Squares())
    assert count(fitted.size) <= budget
    larger = [size for size in fitting._sizes(width, height, 0.99) if size[0] * size[1] > fitted.width * fitted.height]
    assert all(count(size) > budget for size in larger)
    assert abs(fitted.width / width - fitted.height / height) <= 1 / min(width, height)


def test_a_picture_that_fits_is_left_alone_and_each_has_its_own_budget():
    small, large = Image.new("RGB", (56, 56)), Image.new("RGB", (560, 280))
    fitted = foveate.fit_images(Squares(), [small, large], 50)
    assert fitted[0] is small
    assert fitted[1].width == pytest.approx(2 * fitted[1].height, abs=2)
    assert 40 <= fitting._counter(Squares())(fitted[1].size) <= 50


def test_a_share_of_a_picture_s_tokens_or_none_where_all_sizes_have_as_many():
    picture = Image.new("RGB", (560, 280))
    fitted = fitting.fit_share(Squares(), picture, 0.25)
    assert fitted is not None and 40 <= fitting._counter(Squares())(fitted.size) <= 50
    assert fitting.fit_share(Squares(), Image.new("RGB", (28, 28)), 0.25) is None


def test_qwen_s_own_processor_makes_as_many_tokens_as_were_asked_for():
    processor, pixels = qwen()
    picture = Image.new("RGB", (1024, 768))
    for budget in (64, 256, 576):
        (fitted,) = foveate.fit_images(processor, [picture], budget)
        grid = pixels([fitted], return_tensors="pt")["image_grid_thw"][0].tolist()
        tokens = grid[1] * grid[2] // 4
        assert 0.8 * budget <= tokens <= budget


def test_where_no_size_fits_the_fewest_tokens_are_named():
    with pytest.raises(
        InputError, match=r"makes at least 4 visual tokens of a picture of 300 x 200.*max_visual_tokens=4 or more"
    ):
        foveate.fit_images(Squares(), [Image.new("RGB", (300, 200))], 3)
    with pytest.raises(InputError, match="write at least 1"):
        foveate.fit_images(Squares(), [], 0)


def test_a_processor_that_cannot_count_is_run():
    from foveate.demo.loading import load_demo

    _, processor = load_demo()
    picture = Image.new("RGB", (300, 200))
    tokens = fitting._counter(processor)((300, 200))

    class Runs:
        image_token, tokenizer = processor.image_token, processor.tokenizer

        def __call__(self, **call: Any) -> Any:
            return processor(**call)

    assert fitting._counter(Runs())((300, 200)) == tokens
    assert foveate.fit_images(processor, [picture], tokens)[0] is picture
    with pytest.raises(InputError, match=f"at least {tokens} visual tokens"):
        foveate.fit_images(Runs(), [Image.new("RGB", (9, 9))], tokens - 1)
    with pytest.raises(InputError, match="does not say how many visual tokens"):
        foveate.fit_images(object(), [picture], 5)
