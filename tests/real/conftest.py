"""The fetched weights, once for all tests. The vision encoder sees pictures of 112 pixels: 16 visual tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from real_weights.models import pixel_values, together

SIDE = 112


@pytest.fixture(scope="session")
def real() -> tuple[Any, Any]:
    """The vision encoder, a random projector and the language model; and its tokenizer."""
    return together(SIDE)


@pytest.fixture(scope="session")
def prompt(real):
    """Makes inputs of texts with a picture in each, a drawn one, padded on the left."""
    from foveate.demo.drawing import render
    from foveate.demo.scenes import make_picture

    model, tokenizer = real

    def make(*texts: str) -> dict[str, torch.Tensor]:
        rows = []
        for text in texts:
            before, _, after = text.partition("[picture]")
            holders = [model.config.image_token_id] * model.config.image_seq_length
            rows.append([*tokenizer(before)["input_ids"], *holders, *tokenizer(after)["input_ids"]])
        longest = max(map(len, rows))
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        pictures = [render(make_picture("test", 1, number)) for number in range(len(rows))]
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values(pictures, SIDE)}

    return make
