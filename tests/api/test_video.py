"""Reading videos: the sampled frames are the right ones, in every container; each refusal says what to do."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate.api import video as module
from foveate.errors import InputError, MissingPackage
from tests.clips import ENCODERS, number_of, write_clip, write_frames


def numbers(video: foveate.Video) -> list[int]:
    return [number_of(frame) for frame in video.frames]


@pytest.mark.full
@pytest.mark.parametrize("container", ENCODERS)
def test_sampled_frames_are_the_right_ones_in_every_container(tmp_path, container):
    path = write_clip(tmp_path / f"clip.{container}")
    whole = foveate.load_video(path, frames=10)
    assert numbers(whole) == list(range(10))
    assert whole.seconds == pytest.approx([n / 5 for n in range(10)], abs=0.002)
    assert all(frame.size == (64, 48) and frame.mode == "RGB" for frame in whole.frames)
    assert numbers(foveate.load_video(path)) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert numbers(foveate.load_video(str(path), 4)) == [0, 3, 6, 9]
    assert numbers(foveate.load_video(path, 1)) == [4]
    late = foveate.load_video(path, 2, start=1.0, end=1.7)
    assert (numbers(late), late.seconds) == ([5, 8], pytest.approx([1.0, 1.6], abs=0.002))
    assert numbers(foveate.load_video(path, fps=2.5)) == [0, 2, 4, 6, 8]
    assert numbers(foveate.load_video(path, fps=5, max_frames=3)) == [0, 5, 9]
    assert numbers(foveate.load_video(path, fps=1, start=0.4)) == [2, 7]


@pytest.mark.parametrize(("options", "expected"), [(dict(frames=11), 10), (dict(frames=6, start=1.0), 5)])
def test_of_a_video_with_fewer_frames_all_are_read_with_a_warning(tmp_path, options, expected):
    path = write_clip(tmp_path / "clip.mp4")
    with pytest.warns(UserWarning, match=f"clip.mp4 has {expected} frames there, fewer than {options['frames']}"):
        assert len(foveate.load_video(path, **options).frames) == expected


def test_eight_frames_are_usual_and_fewer_are_all(tmp_path):
    assert numbers(foveate.load_video(write_clip(tmp_path / "clip.mp4", frames=3))) == [0, 1, 2]


def test_one_frame_is_a_video(tmp_path):
    path = write_clip(tmp_path / "clip.webm", frames=1)
    assert numbers(foveate.load_video(path)) == numbers(foveate.load_video(path, fps=1)) == [0]


def test_frames_of_a_folder_are_sorted_as_people_count(tmp_path):
    names = ["shot 1.png", "shot 2.jpg", "shot 3.PNG", "shot 9.png", "shot 10.png", "shot 11.png", "shot 100.png"]
    folder = write_frames(tmp_path / "frames", names)
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_text("nor this")
    video = foveate.load_video(folder)
    assert numbers(video) == list(range(7))
    assert video.seconds == list(range(7))  # nothing says when they were taken: one a second
    assert numbers(foveate.load_video(folder, fps=0.5, start=1)) == [1, 3, 5]


def test_a_gif_is_read_when_it_is_called_a_video(tmp_path):
    frames = [Image.new("RGB", (32, 32), (20 * n, 255 - 20 * n, 128)) for n in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=200)
    assert numbers(foveate.load_video(tmp_path / "a.gif")) == [0, 1, 2, 3]


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_frames_are_turned_as_the_camera_was_held(tmp_path, quarter):
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        picture = Image.new("RGB", (96, 64), "blue")
        picture.paste("red", (0, 0, 48, 64))
        out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode())
    # The track header holds a matrix; players turn the picture clockwise by its angle.
    one = 1 << 16
    a, b = ((one, 0), (0, one), (-one, 0), (0, -one))[quarter]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">5i", content[at : at + 20]) == (one, 0, 0, 0, one)
    content[at : at + 20] = struct.pack(">5i", a, b, 0, -b, a)
    path.write_bytes(content)
    (frame,) = foveate.load_video(path).frames
    assert frame.size == ((96, 64), (64, 96))[quarter % 2]
    red = {0: (8, 32), 1: (32, 8), 2: (88, 32), 3: (32, 88)}[quarter]
    assert frame.getpixel(red)[0] > 200
    assert frame.getpixel((frame.width - 1 - red[0], frame.height - 1 - red[1]))[2] > 200


@given(st.integers(1, 60), st.data())
def test_evenly_spread_frames_are_different_and_reach_both_ends(total, data):
    count = data.draw(st.integers(1, total))
    chosen = module._evenly(total, count)
    assert len(chosen) == count == len(set(chosen)) and chosen == sorted(chosen)
    if count > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)
        ideal = [Fraction(at * (total - 1), count - 1) for at in range(count)]
        assert all(abs(n - exact) <= Fraction(1, 2) for n, exact in zip(chosen, ideal, strict=True))


@given(st.floats(0.1, 30), st.integers(2, 200))
def test_frames_by_rate_are_the_nearest_ones(fps, total):
    times = [round(n / 30, 3) for n in range(total)]  # as containers round them
    chosen = module._chosen(times, None, fps, 10**6, "clip")
    assert len(chosen) == int(times[-1] * fps + 1e-3) + 1
    assert all(abs(times[n] - at / fps) <= 1 / 60 + 0.001 for at, n in enumerate(chosen))


def test_a_file_without_pyav_names_the_extra(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install foveate\[video\]"):
        foveate.load_video(path)
    # A folder needs no PyAV.
    monkeypatch.setitem(sys.modules, "av", None)
    assert numbers(foveate.load_video(write_frames(tmp_path / "frames", ["1.png"]))) == [0]


BAD_OPTIONS = [
    (dict(frames=0), "frames=0: write a whole number from 1 to 4,096"),
    (dict(frames=4097), "frames=4097: write a whole number from 1 to 4,096"),
    (dict(frames=10**400), "write a whole number from 1 to 4,096"),
    (dict(frames=2.0), "whole number"),
    (dict(fps=1, max_frames=0), "max_frames=0"),
    (dict(frames=2, fps=1), "not both"),
    (dict(fps=0), "fps=0: write a number above 0"),
    (dict(fps=float("nan")), "fps=nan"),
    (dict(fps=6), "fps=6: clip.mp4 itself shows 5 frames a second"),
    (dict(start=-1), "start=-1: write seconds"),
    (dict(start=2, end=2), "end=2: the end must be later than the start"),
    (dict(start=9), r"shows no frame from 9 s: its last one is at 1.80 s"),
    (dict(start=0.05, end=0.1), "shows no frame from 0.05 s to 0.1 s"),
]


@pytest.mark.parametrize(("options", "says"), BAD_OPTIONS, ids=[says for _, says in BAD_OPTIONS])
def test_options_that_do_not_fit_are_refused(tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        foveate.load_video(write_clip(tmp_path / "clip.mp4"), **options)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "words.mp4").write_text("these are words, and FFmpeg would draw them as a terminal does\n" * 40)
    (tmp_path / "words.txt").write_text("these are words, and FFmpeg would draw them as a terminal does\n" * 40)
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\n{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n")
    with av.open(str(tmp_path / "sound.mov"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    (tmp_path / "nothing").mkdir()
    for name, says in {
        "missing.mp4": "no video at",
        "empty.mp4": "0 bytes",
        "words.mp4": "as a video",
        "words.txt": "as a video",
        "picture.png": "as a video",
        "broken.mp4": "as a video",
        "list.m3u8": "as a video",
        "sound.mov": "sound alone",
        "nothing": "holds no frames",
    }.items():
        with pytest.raises(InputError, match=says) as refused:
            foveate.load_video(tmp_path / name)
        assert "\n" not in str(refused.value) and "Errno" not in str(refused.value)


def test_frames_of_different_sizes_are_refused(tmp_path):
    folder = write_frames(tmp_path / "frames", ["1.png", "2.png"])
    Image.new("RGB", (10, 10)).save(folder / "3.png")
    with pytest.raises(InputError, match="one size, but these are 10 x 10 and 64 x 48"):
        foveate.load_video(folder)
