"""Loading models and pictures for commands, with errors people can act on."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from foveate.demo.loading import load_demo
from foveate.errors import InputError, UnknownName

# Far above what any processor keeps; beyond it decoding alone takes gigabytes.
MAX_SIDE = 16_384
# A last argument with such an ending is a picture, even when the file is missing.
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], str]:
    """The pictures and the question of `IMAGE... QUESTION`.

    Raises:
        InputError: if one of them is missing.
    """
    *names, question = arguments
    if Path(question).suffix.lower() in _PICTURE_SUFFIXES or Path(question).is_file():
        raise InputError(f"no question: '{question}' is a picture; write the question last, in quotes")
    if not question.strip():
        raise InputError("the question is empty: write it last, in quotes")
    if not names:
        raise InputError("no picture: write one or more picture files before the question")
    return [Path(name) for name in names], question


def load_model(name: str | None) -> tuple[Any, Any]:
    """Return (model, processor): the embedded demo model, or a folder or hub id loaded as transformers loads it."""
    if name is None:
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for a file of a few megabytes is noise
        try:
            demo: tuple[Any, Any] = load_demo()
        finally:
            logging.enable_progress_bar()
        return demo
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    is_path = name.count("/") != 1 or name.startswith((".", "/", "~"))
    if is_path and not Path(name).exists():
        raise UnknownName(
            f"no model at '{name}': give a folder, a hub id (owner/name), or leave --model out for the demo model"
        )
    options: dict[str, Any] = {"device_map": "auto"} if torch.cuda.is_available() else {}
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", **options)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load a model and its processor from '{name}': {_first_line(error)}") from None
    return model.eval(), processor


def load_image(path: Path) -> Image.Image:
    """Read a picture as RGB.

    Raises:
        InputError: for a missing, empty, broken or oversized file.
    """
    if not path.is_file():
        raise InputError(f"no picture at {path}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size check below is the stricter one
            with Image.open(path) as opened:
                width, height = opened.size
                if max(width, height) > MAX_SIDE:
                    raise InputError(
                        f"{path} is {width} x {height} pixels; sides up to {MAX_SIDE} are read: scale it down first"
                    )
                return opened.convert("RGB")
    except Image.DecompressionBombError:
        raise InputError(f"{path} is too large: sides up to {MAX_SIDE} pixels are read, scale it down first") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"cannot read {path} as a picture: {_first_line(error)}") from None


def prompt_inputs(model: Any, processor: Any, pictures: Sequence[Image.Image], question: str) -> dict[str, Any]:
    """What the model's own processor makes of a chat turn with pictures and a question, on the model's device."""
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": question}]
    try:
        made = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    except ValueError as error:
        raise InputError(f"the model's processor refuses this prompt: {_first_line(error)}") from None
    inputs: dict[str, Any] = dict(made.to(model.device))
    for name, value in inputs.items():
        if name.startswith("pixel_values") and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    return inputs


def downsampled(picture: Image.Image, keep: float) -> Image.Image:
    """The control that needs no method: a picture with a `keep` share of the pixels."""
    scale = math.sqrt(keep)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def as_seen(picture: Image.Image, processor: Any) -> Image.Image:
    """The part of the picture that reaches the model: CLIP processors crop the middle square."""
    if not getattr(processor.image_processor, "do_center_crop", False):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
