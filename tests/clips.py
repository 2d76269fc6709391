"""Small videos whose frames tell their numbers by colour, written with PyAV."""

from __future__ import annotations

from pathlib import Path

import av
from PIL import Image

RATE = 5
# Containers and encoders that come with PyAV's wheels.
ENCODERS = {"mp4": "libx264", "mov": "mpeg4", "webm": "libvpx-vp9", "mkv": "libx264", "avi": "mpeg4"}
_STEP = 20


def shade(number: int) -> tuple[int, int, int]:
    """The colour of frame `number`, for up to 12 frames."""
    return (_STEP * number, 255 - _STEP * number, 128)


def number_of(frame: Image.Image) -> int:
    """The number of a frame, read off its middle; lossy encoders change colours by less than half of a step."""
    red, green, _ = frame.getpixel((frame.width // 2, frame.height // 2))
    number = round((red + 255 - green) / (2 * _STEP))
    assert abs(red - _STEP * number) < _STEP / 2
    return number


def write_clip(path: Path, frames: int = 10, size: tuple[int, int] = (64, 48), rate: int = RATE) -> Path:
    """A video of `frames` one-coloured frames; the container follows the file's ending."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(ENCODERS[path.suffix[1:]], rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", size, shade(number)))))
        out.mux(stream.encode())
    return path


def write_frames(folder: Path, names: list[str], size: tuple[int, int] = (64, 48)) -> Path:
    """A folder of frames; the n-th name has the colour of frame n."""
    folder.mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", size, shade(number)).save(folder / name)
    return folder
