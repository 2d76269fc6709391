"""The bundled fonts, and where the letters of a text come to lie."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL.ImageFont import FreeTypeFont, Layout, truetype

FONT_FOLDER = Path(__file__).parent / "assets" / "fonts"
CAPITALS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")  # hold nothing else
FONTS = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "Roboto-Regular",
    "Roboto-Bold",
    "OpenSans-Regular",
    "NotoSans-Regular",
    "NotoSerif-Regular",
    "Caladea-Regular",
)

Box = tuple[float, float, float, float]  # left, top, right and bottom


@lru_cache(maxsize=512)
def load_font(name: str, size: float) -> FreeTypeFont:
    """Return a bundled font at a size in pixels; it has ASCII letters, digits and `.:,-`."""
    return truetype(str(FONT_FOLDER / f"{name}.ttf"), size, layout_engine=Layout.BASIC)


def letter_boxes(text: str, font: FreeTypeFont, left: float, top: float) -> list[Box]:
    """Return the box of each letter's ink for a text that is drawn at (left, top)."""
    boxes = []
    for i, letter in enumerate(text):
        start = font.getlength(text[:i])
        x0, y0, x1, y1 = font.getbbox(letter)
        boxes.append((left + start + x0, top + y0, left + start + x1, top + y1))
    return boxes
