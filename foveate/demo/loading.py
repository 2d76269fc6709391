"""The shipped demo model and its example pictures, read from the installed package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foveate.errors import FoveateError

ASSETS = Path(__file__).parent / "assets"
MODEL_FOLDER = ASSETS / "model"
PICTURES_FOLDER = ASSETS / "pictures"


class ExamplePicture(NamedTuple):
    """One bundled picture with a question and its true answer."""

    name: str
    path: Path
    question: str
    answer: str


def load_demo(folder: Path | None = None, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return `(model, processor)` of the demo model, ready for `generate`.

    Args:
        folder: a folder written by the training; the shipped model by default.
        dtype: of the weights in memory; they are stored in bfloat16.

    Raises:
        FoveateError: if there are no weights in the folder.
    """
    source = folder or MODEL_FOLDER
    if not (source / "model.safetensors").is_file():
        raise FoveateError(
            f"there are no demo weights in {source}; reinstall foveate, or train them with "
            "`foveate train demo --out runs/demo` and load `runs/demo/model`"
        )
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=dtype, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(source, local_files_only=True)


def example_pictures() -> list[ExamplePicture]:
    """Return the bundled example pictures; none of them was seen in training.

    Raises:
        FoveateError: if the pictures are missing from the installation.
    """
    index = PICTURES_FOLDER / "examples.json"
    if not index.is_file():
        raise FoveateError(f"the example pictures are missing from {PICTURES_FOLDER}; reinstall foveate")
    entries = json.loads(index.read_text())
    return [
        ExamplePicture(entry["name"], PICTURES_FOLDER / entry["file"], entry["question"], entry["answer"]) for entry in entries
    ]
