"""An answer as a picture: tokens that a gate stored strong, rejected ones pale. matplotlib, no display needed."""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import Any

from foveate.viz.answer_text import AnswerHeading, AnswerText, wrapped
from foveate.viz.packages import require

# Characters in a line, inches of one, of a line and of the margin; points of the letters.
_WIDTH, _CHARACTER, _LINE, _MARGIN, _SIZE = 92, 0.0932, 0.27, 0.3, 11.13
_DPI = 130
_FONT = "DejaVu Sans Mono"  # comes with matplotlib
# Orange stands out from grey for colour-blind eyes too; weight and colour of the letters say the same without it.
_MARK, _INK, _PALE, _SOFT = "#ffdf9e", "#101014", "#8a8a94", "#5c5c66"
_LOOKS = {True: (_INK, "bold", "normal"), False: (_PALE, "normal", "normal"), None: (_SOFT, "normal", "italic")}


def answer_plot(answer: AnswerText, heading: AnswerHeading, counts: str) -> bytes:
    """PNG of the answer with the line of counts above.

    Raises:
        MissingPackage: without matplotlib.
    """
    require("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    above = [(line, _INK, "bold") for line in textwrap.wrap(heading.question, _WIDTH)]
    for text in (f"{heading.plan}  on  {heading.model}", counts):
        above += [(line, _SOFT, "normal") for line in textwrap.wrap(text, _WIDTH)]
    lines = wrapped(answer.pieces, _WIDTH)
    below = [] if heading.plain is None else ["without the plan:", *textwrap.wrap(heading.plain or "(empty)", _WIDTH)]
    rows = len(above) + len(lines) + (len(below) + 1 if below else 0) + 1
    height = rows * _LINE + 2 * _MARGIN
    figure = Figure(figsize=(_WIDTH * _CHARACTER + 2 * _MARGIN, height), dpi=_DPI)
    inches = figure.dpi_scale_trans
    base: dict[str, Any] = {"transform": inches, "family": _FONT, "fontsize": _SIZE, "va": "baseline", "parse_math": False}

    def bottom(row: int) -> float:
        return height - _MARGIN - (row + 1) * _LINE

    for row, (line, colour, weight) in enumerate(above):
        figure.text(_MARGIN, bottom(row) + 0.07, line, color=colour, weight=weight, **base)
    for row, segments in enumerate(lines, start=len(above) + 1):
        for token, column, text in segments:
            left, (colour, weight, style) = _MARGIN + column * _CHARACTER, _LOOKS[answer.kept[token]]
            if answer.kept[token]:
                word = text.lstrip()
                begin, wide = left + (len(text) - len(word)) * _CHARACTER, len(word) * _CHARACTER - 0.012
                figure.add_artist(
                    Rectangle((begin, bottom(row) + 0.01), wide, _LINE - 0.03, transform=inches, color=_MARK, lw=0)
                )
            figure.text(left, bottom(row) + 0.07, text, color=colour, weight=weight, style=style, **base)
    for row, line in enumerate(below, start=len(above) + len(lines) + 2):
        figure.text(_MARGIN, bottom(row) + 0.07, line, color=_SOFT, **base)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of scripts that the font lacks; a box is drawn
        figure.savefig(out, format="png")
    return out.getvalue()
