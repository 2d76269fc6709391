"""Weights of a trained demo model for one with more visual tokens and more words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from foveate.demo.loading import load_demo

POSITIONS = "vision_tower.embeddings.position_embedding.weight"
WORDS = "language_model.embed_tokens.weight"


def grow(model: Any, tokenizer: Any, start: Path) -> None:
    """Fill `model`, a `LlavaForConditionalGeneration`, with the weights of the smaller one in the folder `start`.

    Positions of patches are interpolated. A token that the smaller tokenizer has too keeps its vector; a new one begins as the
    mean of the pieces that it was written with.

    Raises:
        InputError: if the folder holds no demo weights.
        RuntimeError: if the layers of the two models have other shapes.
    """
    small, processor = load_demo(start)
    weights = {name: value.float() for name, value in small.model.state_dict().items()}
    grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
    weights[POSITIONS] = _interpolated(weights[POSITIONS], grid)
    weights[WORDS] = _renamed(weights[WORDS], processor.tokenizer, tokenizer)
    model.model.load_state_dict(weights)
    model.tie_weights()


def _interpolated(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Positions [1 + n, D] of a class token and n patches, for grid x grid patches."""
    first, patches = table[:1], table[1:]
    side = round(len(patches) ** 0.5)
    field = patches.T.reshape(1, -1, side, side)
    larger = F.interpolate(field, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([first, larger[0].flatten(1).T])


def _renamed(table: torch.Tensor, old: Any, new: Any) -> torch.Tensor:
    known = old.get_vocab()
    rows = []
    for index, name in enumerate(new.convert_ids_to_tokens(list(range(len(new))))):
        pieces = [known[name]] if name in known else old(new.decode([index]), add_special_tokens=False)["input_ids"]
        rows.append(table[pieces].mean(0) if pieces else table.mean(0))
    return torch.stack(rows)
