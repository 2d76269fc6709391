"""A clip of the demo model's world as a video file."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from foveate.demo.drawing import render
from foveate.demo.pictures import Clip
from foveate.demo.questions import Question
from foveate.demo.scenes import make_clip
from foveate.demo.several import make_clip_questions
from foveate.files.writing import write_file

# The first that the shipped model answers correctly, as the example pictures were chosen; it is right about 6 clips in 10.
_EXAMPLE = 1
_FRAMES_PER_SECOND = 2
_SCALE = 4  # encoders halve the resolution of colours


def example_clip() -> tuple[Clip, Question]:
    """A clip that was not seen in training, and the question what moves and where to."""
    clip = make_clip("examples", 0, _EXAMPLE)
    questions = make_clip_questions(clip, random.Random(0))
    return clip, next(question for question in questions if question.text == "what moves and where to?")


def write_clip(clip: Clip, path: Path) -> None:
    """Write a clip as an MP4 video. Needs PyAV (the extra `video`)."""
    write_file(path, partial(_write, clip))


def _write(clip: Clip, file: BinaryIO) -> None:
    import av

    pictures = [render(frame) for frame in clip.frames]
    width, height = (_SCALE * side for side in pictures[0].size)
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=_FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            large = picture.resize((width, height), Image.Resampling.NEAREST)
            out.mux(stream.encode(av.VideoFrame.from_image(large)))
        out.mux(stream.encode())
