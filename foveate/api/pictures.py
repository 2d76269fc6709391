"""Reading picture files, within bounds and as people see them, with errors people can act on."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import FoveateError, InputError
from foveate.files.paths import shown, user_path
from foveate.files.reading import MIB, open_regular

if TYPE_CHECKING:  # importing foveate imports no PIL
    from PIL import Image

# Far above what any processor keeps; beyond it decoding takes gigabytes.
MAX_SIDE, MAX_PIXELS, MAX_BYTES = 16_384, 64_000_000, 256 * MIB
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Others that PIL knows run programs (EPS) or are seldom tested.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF")


def load_image(path: str | Path) -> Image.Image:
    """Read a picture as RGB, turned upright where the camera says how it was held; of an animation the first frame.

    Transparent parts become white. 16-bit greys are divided by 257. 32-bit and floating-point greys have no agreed white, so
    floats within 0 to 1 are taken for shares of white, values within 0 to 255 stay, those within 0 to 65,535 are divided by
    257, and any others are stretched from the least to the greatest; NaN and infinity are 0.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM or AVIF, of at most 64 million pixels.

    Raises:
        InputError: for an address, and for a missing, empty, broken or oversized file.
    """
    from PIL import Image

    path = user_path(path)
    with open_regular(path, MAX_BYTES, "picture") as file:
        if not file.read(1):
            raise InputError(f"{shown(path)} is empty (0 bytes)")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes, which are checked below, and of damaged metadata
                Image.init()
                with Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN]) as opened:
                    check_size(path, *opened.size)
                    return _rgb(_upright(opened))
        except FoveateError:
            raise
        except Image.DecompressionBombError:
            raise InputError(f"{shown(path)} is too large: up to {MAX_PIXELS:,} pixels are read, scale it down first") from None
        except Exception as error:  # every format has its own ways to be broken
            raise InputError(f"cannot read {shown(path)} as a picture: {first_line(error)}") from None


def downsampled(picture: Image.Image, keep: float) -> Image.Image:
    """The control that needs no method: a picture with a `keep` share of its pixels."""
    from PIL import Image

    scale = math.sqrt(keep)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture, or a frame, that is too large to decode.

    Raises:
        InputError: naming the size and the bound.
    """
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{shown(path)} is {width} x {height} pixels; sides up to {MAX_SIDE} and {MAX_PIXELS:,} pixels are read: "
            "scale it down first"
        )


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _upright(picture: Image.Image) -> Image.Image:
    from PIL import ImageOps

    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged metadata says nothing, and the pixels are fine
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    over = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of more than 8 bits; how stands in `load_image`."""
    import numpy as np
    from PIL import Image

    values: np.ndarray = np.array(picture, dtype=np.float32)
    values[~np.isfinite(values)] = 0
    low, high = float(values.min()), float(values.max())
    if picture.mode.startswith("I;16"):
        values /= 257
    elif low < 0 or high > 65_535:
        values = (values / 2 - low / 2) / max(high / 2 - low / 2, 1e-30) * 255
    elif picture.mode == "F" and high <= 1:
        values *= 255
    elif high > 255:
        values /= 257
    return Image.fromarray(values.round().astype(np.uint8))
