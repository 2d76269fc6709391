"""The shipped demo model and its example pictures, read from the installed package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foveate.api.models import load_pretrained
from foveate.errors import InputError
from foveate.files.paths import is_file, shown

ASSETS = Path(__file__).parent / "assets"
MODEL_FOLDER = ASSETS / "model"
PICTURES_FOLDER = ASSETS / "pictures"


class ExamplePicture(NamedTuple):
    """One bundled picture with a question and its true answer."""

    name: str
    path: Path
    question: str
    answer: str


def load_demo(folder: Path | None = None, *, dtype: torch.dtype | str = torch.float32, **options: Any) -> tuple[Any, Any]:
    """Return `(model, processor)` of the demo model, ready for `generate`.

    Args:
        folder: a folder written by the training; the shipped model by default.
        dtype: of the weights in memory; they are stored in bfloat16.
        options: of `from_pretrained`: device_map and the like.

    Raises:
        InputError: if there are no weights in the folder, or they are broken.
    """
    source = folder or MODEL_FOLDER
    if not is_file(source / "model.safetensors"):
        raise InputError(f"there are no demo weights in {shown(source)}; reinstall foveate, or name a folder that holds some")
    from transformers import LlavaForConditionalGeneration

    return load_pretrained(str(source.absolute()), LlavaForConditionalGeneration, dtype=dtype, local_files_only=True, **options)


def example_pictures() -> list[ExamplePicture]:
    """Return the bundled example pictures; none of them was seen in training.

    Raises:
        InputError: if the pictures are missing from the installation.
    """
    index = PICTURES_FOLDER / "examples.json"
    if not index.is_file():
        raise InputError(f"the example pictures are missing from {PICTURES_FOLDER}; reinstall foveate")
    entries = json.loads(index.read_text())
    return [
        ExamplePicture(entry["name"], PICTURES_FOLDER / entry["file"], entry["question"], entry["answer"]) for entry in entries
    ]
