"""One HTML file with an answer, in which the tokens that a gate stored stand out. It loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from foveate.viz.answer_text import AnswerHeading, AnswerText
from foveate.viz.attention_page import data_uri
from foveate.viz.packages import require

_TEMPLATE = Path(__file__).parent / "assets" / "answer.html.j2"
_FATES = {True: ("kept", "stored"), False: ("gone", "rejected"), None: ("new", "newest token, not judged")}


def answer_page(
    answer: AnswerText, heading: AnswerHeading, counts: str, pictures: Sequence[tuple[str, Image.Image]] = ()
) -> str:
    """The page as text.

    Args:
        answer: the tokens and what became of them.
        heading: texts.
        counts: the line of counts (`count_line`).
        pictures: what was asked about, with names.

    Raises:
        MissingPackage: without jinja2.
    """
    require("jinja2")
    from jinja2 import Environment, StrictUndefined

    tokens = [
        {"text": piece, "fate": _FATES[kept][0], "note": f"token {number}, {_FATES[kept][1]}"}
        for number, (piece, kept) in enumerate(zip(answer.pieces, answer.kept, strict=True), start=1)
        if piece
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    shown = [{"name": name, "picture": data_uri(picture)} for name, picture in pictures]
    return template.render(tokens=tokens, heading=heading, counts=counts, pictures=shown)
