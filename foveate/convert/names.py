"""Names of one model's tensors: in the official `llava_llama` checkpoints, and in Hugging Face LLaVA checkpoints on the hub.

The hub's spelling (`language_model.model.layers...`) is the one that every version of transformers reads.
"""

from __future__ import annotations

import re

from foveate.predictors import IMAGE, INSTRUCT, TEXT

PREDICTORS = (IMAGE, TEXT, INSTRUCT)
TOWER = "model.vision_tower.vision_tower.vision_model."
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
# Official prefix, hub prefix. Each name has one prefix of either column.
_PREFIXES = (
    (TOWER, "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
)
# What transformers 5 calls the parts in memory and in the files that it writes -> the hub's spelling.
_SPELLINGS = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)
_BUFFERS = (".position_ids", ".rotary_emb.inv_freq")


def is_buffer(name: str) -> bool:
    """Whether it is no weight but a table that older versions stored and newer ones compute."""
    return name.endswith(_BUFFERS)


def predictor_key(official: str) -> str | None:
    """Its name in `predictors.safetensors`, None for a tensor of the model itself."""
    key = official.removeprefix("model.")
    return key if key != official and key.startswith(tuple(f"{name}." for name in PREDICTORS)) else None


def hub_name(official: str) -> str | None:
    """The hub's name of an official one; None if there is none."""
    return _swap(official, 0)


def official_name(hub: str) -> str | None:
    """The official name of one in the hub's spelling; None if there is none."""
    return _swap(hub, 1)


def hub_spelling(name: str) -> str:
    """A name that any version of transformers wrote, in the hub's spelling."""
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def _swap(name: str, side: int) -> str | None:
    for pair in _PREFIXES:
        if name.startswith(pair[side]):
            return pair[1 - side] + name.removeprefix(pair[side])
    return None
