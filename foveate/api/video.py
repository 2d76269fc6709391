"""Frames of a video: a file that PyAV decodes (the extra `video`), or a folder of pictures."""

from __future__ import annotations

import math
import os
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.api.pictures import PICTURE_SUFFIXES, check_size, first_line, load_image
from foveate.errors import FoveateError, FoveateWarning, InputError, MissingPackage
from foveate.files.paths import refused, shown, user_path
from foveate.files.reading import open_regular

if TYPE_CHECKING:  # importing foveate imports no PIL
    from PIL import Image

# Files that a command takes for a video by their name; a GIF is a picture there.
VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")
# FFmpeg's names of containers. It would also "decode" text files, single pictures and playlists that name other files.
_FORMATS = "mov,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_USUAL_FRAMES = 8
# Frames of one video, and pixels of all of them together: 3 GB.
MOST_FRAMES, _MOST_PIXELS = 4_096, 2**30


@dataclass(frozen=True)
class Video:
    """Frames of a video in order.

    Attributes:
        frames: RGB pictures, all of one size.
        seconds: when each frame is shown, counted from the beginning of the video, however much of it was read.
    """

    frames: list[Image.Image]
    seconds: list[float]


def load_video(
    path: str | Path,
    frames: int | None = None,
    *,
    fps: float | None = None,
    max_frames: int = 64,
    start: float = 0.0,
    end: float | None = None,
) -> Video:
    """Read some frames of a video.

    Args:
        path: a video file (mp4, mov, webm, mkv, avi and other containers), or a folder of pictures, which are sorted as people
            count (frame2 before frame10) and stand one second apart, as nothing says when they were taken.
        frames: how many, spread evenly from the first to the last; 8 if neither this nor `fps` is given. Of a video with fewer
            all are read, and a warning says so if they were asked for.
        fps: instead, frames for each second, from the first on.
        max_frames: with `fps`, spread this many evenly over what would be more.
        start, end: seconds; only frames that are shown at or after `start` and before `end` count.

    Returns:
        The frames, turned upright where the file says how the camera was held, and their times.

    Raises:
        MissingPackage: for a file, without PyAV.
        InputError: for what is no video, holds no frame in that range, or more pixels than memory should.
    """
    path = user_path(path)
    _check(frames, fps, max_frames, start, end)
    end = math.inf if end is None else end
    is_folder = os.path.isdir(path)  # pathlib raises for names that are too long
    if not is_folder:
        _check_file(path)
    listed = list(_folder_times(path) if is_folder else _file_times(path, start, end))
    times = [seconds for seconds in listed if start <= seconds < end]
    if not times:
        span = f"from {start:g} s" + ("" if end == math.inf else f" to {end:g} s")
        raise InputError(f"{path} shows no frame {span}" + (f": its last one is at {listed[-1]:.2f} s" if listed else ""))
    if frames is not None and frames > len(times):
        warnings.warn(
            f"{path.name} has {len(times)} frames there, fewer than {frames}: all of them are read", FoveateWarning, 2
        )
        frames = len(times)
    chosen = _chosen(times, frames, fps, max_frames, path.name)
    read = _folder_frames(path, [times[at] for at in chosen]) if is_folder else _file_frames(path, times, chosen)
    pictures = []
    for picture in read:
        pictures.append(picture)
        if len(chosen) * picture.width * picture.height > _MOST_PIXELS:
            raise InputError(
                f"{len(chosen)} frames of {picture.width} x {picture.height} pixels do not fit in memory: ask for fewer"
            )
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        (w, h), (other_w, other_h) = sizes[:2]
        raise InputError(f"{path}: frames of one video have one size, but these are {w} x {h} and {other_w} x {other_h}")
    return Video(pictures, [times[at] for at in chosen])


def _check(frames: int | None, fps: float | None, max_frames: int, start: float, end: float | None) -> None:
    if frames is not None and fps is not None:
        raise InputError("give frames or fps, not both")
    for name, number in (("frames", frames), ("max_frames", max_frames)):
        if number is not None and (not isinstance(number, int) or not 1 <= number <= MOST_FRAMES):
            raise InputError(f"{name}={str(number)[:30]}: write a whole number from 1 to {MOST_FRAMES:,}")
    if fps is not None and not 0 < fps < math.inf:
        raise InputError(f"fps={fps:g}: write a number above 0")
    if not 0 <= start < math.inf:
        raise InputError(f"start={start:g}: write seconds, at least 0")
    if end is not None and not end > start:
        raise InputError(f"end={end:g}: the end must be later than the start, {start:g} s")


def _check_file(path: Path) -> None:
    with open_regular(path, what="video") as file:
        if not file.read(1):
            raise InputError(f"{shown(path)} is empty (0 bytes)")
    if find_spec("av") is None:
        raise MissingPackage(f"reading {path.name} needs PyAV: pip install foveate[video]")


def _chosen(times: Sequence[float], frames: int | None, fps: float | None, max_frames: int, name: str) -> list[int]:
    """Which of the frames at these times to take, ascending."""
    if fps is None:
        return _evenly(len(times), min(_USUAL_FRAMES, len(times)) if frames is None else frames)
    length = times[-1] - times[0]
    own = (len(times) - 1) / length if length else math.inf
    if fps > 1.01 * own:  # containers round times to milliseconds
        raise InputError(f"fps={fps:g}: {name} itself shows {own:.4g} frames a second; ask for at most that many")
    moments = [times[0] + number / fps for number in range(int(length * fps + 1e-3) + 1)]
    chosen = [_nearest(times, moment) for moment in moments]
    return chosen if len(chosen) <= max_frames else [chosen[at] for at in _evenly(len(chosen), max_frames)]


def _evenly(total: int, count: int) -> list[int]:
    """`count` different numbers below `total`, the first and the last among them; one alone is the middle."""
    if count == 1:
        return [(total - 1) // 2]
    return [(2 * at * (total - 1) + count - 1) // (2 * (count - 1)) for at in range(count)]


def _nearest(times: Sequence[float], moment: float) -> int:
    at = bisect_left(times, moment)
    return min((n for n in (at - 1, at) if 0 <= n < len(times)), key=lambda n: abs(times[n] - moment))


def _folder(path: Path) -> list[Path]:
    with refused("read the frames in", path):
        listed = list(path.iterdir())
    found = [file for file in listed if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")]
    if not found:
        raise InputError(f"{path} holds no frames: they are pictures ({', '.join(PICTURE_SUFFIXES)})")
    return sorted(found, key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)])


def _folder_times(path: Path) -> list[float]:
    return [float(number) for number in range(len(_folder(path)))]


def _folder_frames(path: Path, seconds: Sequence[float]) -> Iterator[Image.Image]:
    files = _folder(path)
    return (load_image(files[round(at)]) for at in seconds)


def _file_times(path: Path, start: float, end: float) -> Iterator[float]:
    """When the frames of a file are shown. Only decoding tells for sure: packets may hold none, or one that is never shown."""
    with _decoding(path, start) as shown:
        for seconds, _ in shown:
            if seconds >= end:
                return
            yield seconds


def _file_frames(path: Path, times: Sequence[float], chosen: Sequence[int]) -> Iterator[Image.Image]:
    """Frames `chosen` of those at `times`. The file is read again, as keeping all frames would take gigabytes."""
    wanted, number = set(chosen), 0
    with _decoding(path, times[0]) as shown:
        for seconds, frame in shown:
            if seconds < times[0]:
                continue
            if number in wanted:
                # Counterclockwise degrees, as the camera was held.
                yield frame.to_image().convert("RGB").rotate(frame.rotation, expand=True)
            number += 1
            if number > max(wanted):
                return


@contextmanager
def _decoding(path: Path, start: float) -> Iterator[Iterator[tuple[float, Any]]]:
    """(seconds, frame) for the frames of a file, from the last key frame before `start` on."""
    import av

    try:
        # The whole path, as a name of its own may look like one of FFmpeg's protocols.
        with av.open(str(path.absolute()), options={"format_whitelist": _FORMATS}) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no pictures: it holds sound alone")
            stream = container.streams.video[0]
            check_size(path, stream.width, stream.height)
            stream.thread_type = "AUTO"
            if not stream.time_base:
                raise InputError(f"{path} does not say when its frames are shown")
            # Times are counted in such parts of a second.
            part, whole = stream.time_base.numerator, stream.time_base.denominator
            first = stream.start_time or 0
            if start > 0:
                container.seek(first + int(start * whole / part), stream=stream)
            yield (((frame.pts - first) * part / whole, frame) for frame in container.decode(stream) if frame.pts is not None)
    except FoveateError:
        raise
    except (av.FFmpegError, ArithmeticError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"cannot read {path} as a video (mp4, mov, webm, mkv, avi): {why}") from None
