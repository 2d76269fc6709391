"""Options that several commands have, each worded once. A command gives their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.api.video import MOST_FRAMES
from foveate.files.paths import user_path

PROMPT_METAVAR = "[IMAGE|VIDEO...] QUESTION"
PROMPT_HELP = "Pictures, video files and folders of frames, then the question."


# The largest numbers that are taken: far beyond any use, and small enough to be refused in place of filling memory.
MOST_TOKENS, MOST_REPEATS, MOST_SAMPLES = 1_000_000, 1_000, 100_000


def longest_answer(least: int = 1) -> Any:
    """An option for the length of an answer."""
    return typer.Option("--max-new-tokens", "--new-tokens", min=least, max=MOST_TOKENS, help="Longest answer, in tokens.")


def expanded(given: Any) -> Any:
    """The paths of an option or argument with `~` replaced; for `callback=`."""
    if isinstance(given, list | tuple):
        return [user_path(path) for path in given]
    return None if given is None else user_path(given)


Prompt = Annotated[list[str], typer.Argument(metavar=PROMPT_METAVAR, help=PROMPT_HELP)]
Model = Annotated[str | None, typer.Option(help="Folder or hub id; the embedded demo model if left out.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that lies beside the model, if it asks for that.")
]
NewTokens = Annotated[int, longest_answer()]
MostVisualTokens = Annotated[
    int | None, typer.Option(min=1, help="Scale each picture down until the processor makes at most so many tokens of it.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables and text.")]
OutFolder = Annotated[Path, typer.Option(callback=expanded, help="Folder for the files.")]
OutFile = Annotated[
    Path | None, typer.Option(callback=expanded, help="Also write all numbers, with settings and versions, to this file.")
]
Html = Annotated[Path | None, typer.Option(callback=expanded, help="Write the page here.")]
Png = Annotated[Path | None, typer.Option(callback=expanded, help="Write the picture here.")]

Smoke = Annotated[bool, typer.Option("--smoke", help="A few steps of everything, for tests; it learns nothing.")]

Videos = Annotated[
    list[Path] | None, typer.Option("--video", callback=expanded, help="A video file or a folder of frames; may be repeated.")
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", min=1, max=MOST_FRAMES, help="Frames of each video, spread evenly; 8, or all of fewer."),
]
Fps = Annotated[float | None, typer.Option("--fps", help="Instead of --frames: frames for each second.")]
MaxFrames = Annotated[
    int, typer.Option("--max-frames", min=1, max=MOST_FRAMES, help="With --fps: at most so many of each video, spread evenly.")
]
Start = Annotated[float, typer.Option("--start", help="Where to begin in each video, in seconds.")]
End = Annotated[float | None, typer.Option("--end", help="Where to stop in each video, in seconds.")]
