"""Options that several commands have, each worded once. A command gives their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PROMPT_METAVAR = "[IMAGE|VIDEO...] QUESTION"
PROMPT_HELP = "Pictures, video files and folders of frames, then the question."


def longest_answer(least: int = 1) -> Any:
    """An option for the length of an answer."""
    return typer.Option("--max-new-tokens", "--new-tokens", min=least, max=1_000_000, help="Longest answer, in tokens.")


Prompt = Annotated[list[str], typer.Argument(metavar=PROMPT_METAVAR, help=PROMPT_HELP)]
Model = Annotated[str | None, typer.Option(help="Folder or hub id; the embedded demo model if left out.")]
NewTokens = Annotated[int, longest_answer()]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables and text.")]
OutFolder = Annotated[Path, typer.Option(help="Folder for the files.")]
OutFile = Annotated[Path | None, typer.Option(help="Also write all numbers, with settings and versions, to this file.")]
Html = Annotated[Path | None, typer.Option(help="Write the page here.")]
Png = Annotated[Path | None, typer.Option(help="Write the picture here.")]

Smoke = Annotated[bool, typer.Option("--smoke", help="A few steps of everything, for tests; it learns nothing.")]

Videos = Annotated[list[Path] | None, typer.Option("--video", help="A video file or a folder of frames; may be repeated.")]
Frames = Annotated[int | None, typer.Option("--frames", help="Frames of each video, spread evenly; 8, or all of fewer.")]
Fps = Annotated[float | None, typer.Option("--fps", help="Instead of --frames: frames for each second.")]
MaxFrames = Annotated[int, typer.Option("--max-frames", help="With --fps: at most so many of each video, spread evenly.")]
Start = Annotated[float, typer.Option("--start", help="Where to begin in each video, in seconds.")]
End = Annotated[float | None, typer.Option("--end", help="Where to stop in each video, in seconds.")]
