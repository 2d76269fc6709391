"""The fetched weights as models: each alone, and both in one unmodified InternVLForConditionalGeneration.

Nobody trained a projector between the two: the one here is random, so that pictures mean nothing to the language model. What
holds for any weights (equalities, bytes, times) can be measured on it, what pictures mean cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from real_weights.fetching import LANGUAGE, VISION, fetched

# A token of the vocabulary that no text holds: the language model stays as it is.
PLACEHOLDER = "<file_sep>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels, as the vision package normalizes them


def language(**options: Any) -> tuple[Any, Any]:
    """The language model, and its tokenizer, which writes no token in front of a text.

    Raises:
        InputError: if it was not fetched yet.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetched(LANGUAGE)
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval(), AutoTokenizer.from_pretrained(folder)


def vision(side: int = 518) -> Any:
    """The vision encoder for pictures of `side` x `side` pixels, 14 for each patch; its table of positions is resampled once.

    Raises:
        InputError: if it was not fetched yet.
    """
    from transformers import InternVLVisionModel

    model = InternVLVisionModel.from_pretrained(fetched(VISION)).eval()
    patches = (side // 14) ** 2
    embeddings = model.embeddings
    with torch.no_grad():
        table = embeddings.interpolate_pos_encoding(torch.empty(1, patches + 1, model.config.hidden_size), side, side)
    embeddings.position_embeddings = torch.nn.Parameter(table.clone())
    model.config.image_size = embeddings.patch_embeddings.image_size = (side, side)
    embeddings.patch_embeddings.num_patches = patches
    return model


def together(side: int = 336, seed: int = 0, shuffle: int = 2, attn: str = "sdpa") -> tuple[Any, Any]:
    """Both in one model with a random projector, and the tokenizer.

    Args:
        side: of a picture, in pixels; a multiple of 14 x shuffle.
        seed: of the projector.
        shuffle: shuffle x shuffle patches become one visual token: 336 pixels are 144 tokens with 2, 576 with 1.
        attn: attention backend.

    Raises:
        InputError: if the weights were not fetched yet.
    """
    from transformers import InternVLForConditionalGeneration

    (text, tokenizer), tower = language(), vision(side)
    config = joined_config(text.config, tower.config, tokenizer.convert_tokens_to_ids(PLACEHOLDER), shuffle)
    config._attn_implementation = attn
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    with torch.no_grad():  # visual tokens as long as words: a fresh linear layer would make them shorter
        words = text.get_input_embeddings().weight.std()
        model.model.multi_modal_projector.linear_2.weight.normal_(std=float(words) / text.config.hidden_size**0.5)
    model.generation_config = text.generation_config
    return model, tokenizer


def pixel_values(pictures: Sequence[Image], side: int) -> Tensor:
    """[P, 3, side, side] float32, as the vision encoder was trained on them; each picture is stretched to a square."""
    shown = [np.asarray(picture.convert("RGB").resize((side, side)), dtype=np.float32) for picture in pictures]
    values: Tensor = (torch.from_numpy(np.stack(shown)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2).contiguous()


def joined_config(text: Any, vision: Any, placeholder: int, shuffle: int = 2) -> Any:
    """The config of an InternVL of these parts, whose last layer's features go to the projector."""
    from transformers import InternVLConfig

    side = vision.image_size[0] // vision.patch_size[0] // shuffle
    return InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=placeholder,
        image_seq_length=side * side,
        downsample_ratio=1 / shuffle,
        tie_word_embeddings=text.tie_word_embeddings,
    )
