"""The real processors of the families, built offline: word-level tokenizers and the image processors that need only PIL."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image


def image(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 120, 30))


def image_processor(family: str, module: str, name: str, **options: Any) -> Any:
    """An image processor, or a skip where this transformers has none that runs without torchvision."""
    found = pytest.importorskip(f"transformers.models.{family}.image_processing_pil_{module}")
    return getattr(found, name)(**options)


def tokenizer(**special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "text", *special.values()]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=special)
