"""The pictures and videos of a command: how they are named, read, and handed to a model."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.api import Video, load_video
from foveate.api.pictures import PICTURE_SUFFIXES, load_image
from foveate.api.video import VIDEO_SUFFIXES
from foveate.errors import InputError
from foveate.files.paths import shown, user_path

if TYPE_CHECKING:  # a help text needs no PIL
    from PIL import Image

MAX_FRAMES = 64


@dataclass(frozen=True)
class Shown:
    """A picture or a video that goes into a prompt, and the file or folder it was read from."""

    path: Path
    content: Image.Image | Video

    @property
    def frames(self) -> list[Image.Image]:
        """The frames of a video, or the picture alone."""
        return self.content.frames if isinstance(self.content, Video) else [self.content]


@dataclass(frozen=True)
class Sampling:
    """Which frames of each video are read, by the options of `foveate.cli.options`."""

    frames: int | None = None
    fps: float | None = None
    max_frames: int = MAX_FRAMES
    start: float = 0.0
    end: float | None = None

    def load(self, path: Path) -> Video:
        """Read a video file or a folder of frames."""
        return load_video(path, self.frames, fps=self.fps, max_frames=self.max_frames, start=self.start, end=self.end)


def split_arguments(arguments: Sequence[str], has_videos: bool = False, model: str | None = None) -> tuple[list[Path], str]:
    """The pictures and videos, and the question, of `IMAGE... QUESTION`.

    Args:
        arguments: as they were typed.
        has_videos: whether `--video` names some, so that a question alone is enough.
        model: of which the question is asked; to a plain language model alone.

    Raises:
        InputError: if one of them is missing.
    """
    *names, question = arguments
    if not question.strip():
        raise InputError("the question is empty: write it last, in quotes")
    # os.path, as pathlib raises for a question that is too long for a file name.
    if Path(question).suffix.lower() in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES) or os.path.exists(question):
        kind = "video" if is_video(Path(question)) else "picture"
        raise InputError(f"no question: '{shown(question)}' is a {kind}; write the question last, in quotes")
    if not names and not has_videos and not _is_text_only(model):
        raise InputError("no picture: write one or more picture or video files before the question")
    return [user_path(name) for name in names], question


def _is_text_only(model: str | None) -> bool:
    from foveate.api.cost import resolve_config
    from foveate.families import family_for

    return model is not None and family_for(resolve_config(model)).is_text_only


def is_video(path: Path) -> bool:
    """Whether a path without an option names a video: a folder, or a file with a video's ending."""
    return os.path.isdir(path) or path.suffix.lower() in VIDEO_SUFFIXES


def load_all(paths: Sequence[Path], videos: Sequence[Path] | None, sampling: Sampling) -> list[Shown]:
    """Read pictures and videos in the order of the prompt: as they were typed, then those of `--video`.

    Raises:
        InputError, MissingPackage: for a file that cannot be read; for sampling options where there is no video.
    """
    named = [(path, is_video(path)) for path in paths] + [(user_path(path), True) for path in videos or ()]
    if sampling != Sampling() and not any(video for _, video in named):
        raise InputError("--frames, --fps, --max-frames, --start and --end are for videos, and there is none")
    return [Shown(path, sampling.load(path) if video else load_image(path)) for path, video in named]


def names_of(shown: Sequence[Shown]) -> str:
    """File names for titles: `a.png, clip.mp4 (8 frames)`; `no picture` where there is none."""
    return (
        "no picture"
        if not shown
        else ", ".join(
            f"{one.path.name} ({len(one.frames)} frames)" if isinstance(one.content, Video) else one.path.name for one in shown
        )
    )


def takes_videos(processor: Any) -> bool:
    """Whether a model's processor makes media of whole videos; others get their frames as pictures."""
    return getattr(processor, "video_processor", None) is not None


def metadata(video: Video) -> dict[str, Any]:
    """What processors want to know of sampled frames, in their words.

    They read times as index / fps and the rate as len(indices) / total * fps, so milliseconds stand for indices.
    """
    seconds = video.seconds
    width, height = video.frames[0].size
    step = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 1.0
    return {
        "total_num_frames": max(len(seconds), round(1000 * step * len(seconds))),
        "fps": 1000.0,
        "frames_indices": [round(1000 * at) for at in seconds],
        "duration": step * len(seconds),
        "width": width,
        "height": height,
    }
