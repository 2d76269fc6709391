"""A video as one picture: its frames side by side with their times, a line for each stage, and bars of what stayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from foveate.viz.overlay import stack
from foveate.viz.parts import Part

_LINE = 8  # frames beside each other; more continue below
_WIDTHS = (130, 240)  # least and largest width of a frame in pixels
_WIDE = 1440  # what a line of frames aims at
_TEXT, _GAP, _BAR = 22, 6, 10
_INK, _SOFT, _TRACK, _FILL = "black", (90, 90, 98), (225, 225, 230), (0, 114, 178)


@dataclass(frozen=True)
class FilmFrame:
    """One frame of a video through the stages of a plan.

    Attributes:
        part: the frame.
        seen: what the model saw.
        panels: the same after each stage.
        kept: how many of its tokens were left after each stage.
    """

    part: Part
    seen: Image.Image
    panels: Sequence[Image.Image]
    kept: Sequence[int]


def film_picture(stages: Sequence[str], frames: Sequence[FilmFrame]) -> Image.Image:
    """All frames: at the top what the model saw and when, then a line for each stage with bars of the share that stayed."""
    lines = [frames[start : start + _LINE] for start in range(0, len(frames), _LINE)]
    width = min(max(_WIDE // len(lines[0]), _WIDTHS[0]), _WIDTHS[1])
    return stack([_line(stages, line, frames, width) for line in lines])


def _line(stages: Sequence[str], line: Sequence[FilmFrame], frames: Sequence[FilmFrame], width: int) -> Image.Image:
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    height = max(round(width * frame.part.aspect) for frame in line)
    tokens = sum(_tokens(frame) for frame in frames)
    moment = frames[0].part.moment
    title = f"{'' if moment is None else moment.name + ': '}{tokens} tokens in {len(frames)} frames"
    captions = [title, *(f"{stage}: {sum(frame.kept[at] for frame in frames)}" for at, stage in enumerate(stages))]
    across = max((width + _GAP) * len(line) - _GAP, *(round(font.getlength(caption)) + 4 for caption in captions))
    row = _TEXT + height + _BAR + _TEXT + _GAP
    out = Image.new("RGB", (across, row * len(captions)), "white")
    draw = ImageDraw.Draw(out)
    for number, caption in enumerate(captions):
        top = number * row
        draw.text((2, top + 2), caption, fill=_INK, font=font)
        for place, frame in enumerate(line):
            left, below = place * (width + _GAP), top + _TEXT + height
            picture = frame.seen if number == 0 else frame.panels[number - 1]
            out.paste(
                picture.convert("RGB").resize((width, round(width * frame.part.aspect)), Image.Resampling.LANCZOS),
                (left, top + _TEXT),
            )
            if number == 0:
                text = "" if frame.part.moment is None else f"{frame.part.moment.seconds:.1f} s"
                draw.line((left, below + 4, left + width + _GAP, below + 4), fill=_SOFT, width=2)
                draw.line((left, below, left, below + 8), fill=_SOFT, width=2)
            else:
                kept, total = frame.kept[number - 1], _tokens(frame)
                text = f"{kept} of {total}"
                draw.rectangle((left, below + 2, left + width - 1, below + _BAR), fill=_TRACK)
                if kept:
                    draw.rectangle((left, below + 2, left + max(1, round(width * kept / total)) - 1, below + _BAR), fill=_FILL)
            draw.text((left + 2, below + _BAR + 1), text, fill=_SOFT, font=small)
    return out


def _tokens(frame: FilmFrame) -> int:
    return frame.part.stop - frame.part.start
