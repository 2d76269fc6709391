"""Which visual tokens stayed, drawn over the picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

# Outline of kept tokens: orange stands out from photographs and from grey, also for colour-blind eyes.
KEPT_OUTLINE = (255, 140, 0)
_DIM, _GREY = 0.45, 0.15
_LABEL_HEIGHT, _GAP = 26, 8


def kept_overlay(
    picture: Image.Image,
    grid: tuple[int, int, int],
    kept: Sequence[int],
    side: int = 448,
    outline: tuple[int, int, int] | None = KEPT_OUTLINE,
) -> Image.Image:
    """The picture with removed tokens dimmed and kept ones outlined.

    Args:
        picture: what the model saw, already cropped as its processor crops.
        grid: (1, h, w) of the visual tokens.
        kept: raster indices of the tokens that stayed.
        side: width of the result in pixels; the height follows the picture.
        outline: colour around kept tokens, None for none.
    """
    _, rows, columns = grid
    cell = max(1, side // columns)
    height = max(1, round(cell * columns * picture.height / picture.width / rows))
    shown = picture.convert("RGB").resize((cell * columns, height * rows), Image.Resampling.LANCZOS)
    grey = ImageEnhance.Color(shown).enhance(_GREY)
    out = ImageEnhance.Brightness(grey).enhance(_DIM)
    draw = ImageDraw.Draw(out)
    for token in kept:
        y, x = divmod(int(token), columns)
        box = (x * cell, y * height, (x + 1) * cell, (y + 1) * height)
        out.paste(shown.crop(box), box[:2])
        if outline is not None:
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=outline)
    return out


def strip(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side on white, each with its caption above."""
    font = ImageFont.load_default(15)
    height = max(image.height for _, image in panels) + _LABEL_HEIGHT
    widths = [max(image.width, int(font.getlength(caption)) + 4) for caption, image in panels]
    out = Image.new("RGB", (sum(widths) + _GAP * (len(panels) - 1), height), "white")
    draw, left = ImageDraw.Draw(out), 0
    for (caption, image), width in zip(panels, widths, strict=True):
        draw.text((left + 2, 4), caption, fill="black", font=font)
        out.paste(image, (left, _LABEL_HEIGHT))
        left += width + _GAP
    return out


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on white."""
    width = max(row.width for row in rows)
    out = Image.new("RGB", (width, sum(row.height for row in rows) + _GAP * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        out.paste(row, (0, top))
        top += row.height + _GAP
    return out
