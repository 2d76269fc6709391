"""Reading picture files, with errors people can act on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import InputError

if TYPE_CHECKING:  # importing foveate imports no PIL
    from PIL import Image

# Far above what any processor keeps; beyond it decoding alone takes gigabytes.
MAX_SIDE = 16_384
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def load_image(path: Path) -> Image.Image:
    """Read a picture as RGB.

    Raises:
        InputError: for a missing, empty, broken or oversized file.
    """
    from PIL import Image, UnidentifiedImageError

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
        raise InputError(f"cannot read {path} as a picture: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
