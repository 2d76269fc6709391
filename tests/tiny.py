"""Tiny random models of every family and inputs for them: ragged batches, several images, both paddings. No downloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from foveate import families

FAMILIES = ("llava", "qwen2_5_vl", "gemma3")
PAD, IMAGE, VIDEO = 0, 90, 91
# Patches (t, h, w) of the images that the tiny Qwen gets in turn: whole and partial windows.
_QWEN_GRIDS = ((1, 8, 8), (1, 8, 12), (1, 4, 8))
# The first decoder layer at which FastV can act: Gemma's layer 0 sees a sliding window only.
FIRST_LAYER = {"llava": 2, "qwen2_5_vl": 2, "gemma3": 2}
SECOND_LAYER = {"llava": 3, "qwen2_5_vl": 3, "gemma3": 5}


def tiny_model(family: str, backend: str = "sdpa", seed: int = 0) -> nn.Module:
    """A random model whose answers depend on the picture: weights are scaled until attention is not uniform."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(families.get(family).tiny_config()).eval()
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim >= 2 and parameter.std() < 0.05:
                parameter.mul_(6.0)
        if family == "gemma3":
            model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.3)
        model.get_output_embeddings().weight.normal_(0, 0.5)
    model.set_attn_implementation(backend)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, 92, 93]
    return model


@dataclass
class Row:
    """One prompt: pieces of text token ids and images (their pixel tensors) or videos in between."""

    pieces: list[Any]


@dataclass
class Picture:
    """One image or video, as the family's processor would hand it over."""

    kind: str
    pixels: Tensor
    grid: tuple[int, int, int]  # patches for Qwen, visual tokens for the others
    tokens: int


class Maker:
    """Makes prompts and inputs of one family from a seed."""

    def __init__(self, family: str, seed: int = 1) -> None:
        self.family, self.random, self.made = family, torch.Generator().manual_seed(seed), 0

    def text(self, length: int) -> Tensor:
        return torch.randint(3, 80, (length,), generator=self.random)

    def picture(self, grid: tuple[int, int, int] | None = None, kind: str = "image") -> Picture:
        if self.family == "qwen2_5_vl":
            grid = grid or _QWEN_GRIDS[self.made % len(_QWEN_GRIDS)]
            self.made += 1
            t, h, w = grid
            return Picture(kind, torch.randn(t * h * w, 96, generator=self.random), grid, t * h * w // 4)
        return Picture("image", torch.randn(3, 24, 24, generator=self.random), (1, 6, 6), 36)

    def inputs(self, rows: list[Row], side: str = "left", mask: bool = True) -> dict[str, Tensor]:
        """Model inputs of several prompts; rows of unequal length are padded."""
        sequences = [torch.cat([_columns(piece) for piece in row.pieces]) for row in rows]
        width = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(rows), width), PAD)
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        for number, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[number, place] = sequence
            attention[number, place] = 1
        inputs = {"input_ids": ids}
        if mask:
            inputs["attention_mask"] = attention
        pictures = [piece for row in rows for piece in row.pieces if isinstance(piece, Picture)]
        return inputs | self._media(ids, pictures)

    def _media(self, ids: Tensor, pictures: list[Picture]) -> dict[str, Tensor]:
        media: dict[str, Tensor] = {}
        images = [picture for picture in pictures if picture.kind == "image"]
        videos = [picture for picture in pictures if picture.kind == "video"]
        if self.family == "qwen2_5_vl":
            media["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
            if images:
                media["pixel_values"] = torch.cat([picture.pixels for picture in images])
                media["image_grid_thw"] = torch.tensor([picture.grid for picture in images])
            if videos:
                media["pixel_values_videos"] = torch.cat([picture.pixels for picture in videos])
                media["video_grid_thw"] = torch.tensor([picture.grid for picture in videos])
        else:
            if images:
                media["pixel_values"] = torch.stack([picture.pixels for picture in images])
            if self.family == "gemma3":
                media["token_type_ids"] = (ids == IMAGE).long()
        return media


def _columns(piece: Any) -> Tensor:
    if isinstance(piece, Picture):
        return torch.full((piece.tokens,), IMAGE if piece.kind == "image" else VIDEO)
    return piece


def ragged_rows(maker: Maker, batch: int) -> list[Row]:
    """Prompts of unequal length with 1, 2 and 0 images, text before, between and after."""
    rows = [
        Row([maker.text(5), maker.picture(), maker.text(7)]),
        Row([maker.text(3), maker.picture(), maker.text(4), maker.picture(), maker.text(5)]),
        Row([maker.text(12)]),
    ]
    return rows[:batch]


def generate(model: nn.Module, inputs: dict[str, Tensor], tokens: int = 6, **options: Any) -> Any:
    """Greedy generation with logits."""
    options.setdefault("do_sample", False)
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=tokens, output_logits=True, return_dict_in_generate=True, **options)


def greatest_difference(first: Any, second: Any) -> float:
    """Largest absolute difference of two generate outputs' logits."""
    return max(float((a - b).abs().max()) for a, b in zip(first.logits, second.logits, strict=True))
