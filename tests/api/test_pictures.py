"""Pictures are read as people see them, within bounds of time and memory, or refused in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from foveate.api.pictures import load_image
from foveate.errors import InputError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_pictures_stand_upright(tmp_path, orientation, suffix):
    picture = Image.new("RGB", (120, 60), "white")
    picture.paste("red", (0, 0, 30, 15))  # at the top left before it is turned
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(saved(tmp_path / f"a{suffix}", picture, exif=exif))
    assert loaded.size == ((120, 60) if orientation < 5 else (60, 120))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    x, y = corners[orientation]
    red = loaded.getpixel((3 + x * (loaded.width - 7), 3 + y * (loaded.height - 7)))
    assert red[0] > 200 and red[1] < 60


GREYS = {
    "16-bit.png": (RAMP * 65_535).round().astype(np.uint16),
    "16-bit.tif": (RAMP * 65_535).round().astype(np.uint16),
    "of-65535.tif": (RAMP * 65_535).round().astype(np.int32),
    "of-255.tif": (RAMP * 255).round().astype(np.int32),
    "whole-range.tif": (RAMP * 2_000_000_000).astype(np.int32),
    "below-zero.tif": (RAMP * 4e9 - 2e9).astype(np.int32),
    "share.tif": RAMP.astype(np.float32),
    "float-of-255.tif": (RAMP * 255).astype(np.float32),
    "signed.tif": (RAMP * 2 - 1).astype(np.float32),
    "huge.tif": (RAMP * 6e38 - 3e38).astype(np.float32),
}


@pytest.mark.parametrize("name", GREYS)
def test_greys_of_more_than_eight_bits_are_scaled(tmp_path, name):
    loaded = np.asarray(load_image(saved(tmp_path / name, Image.fromarray(GREYS[name]))))
    assert loaded.shape == (16, 16, 3)
    assert np.abs(loaded[..., 0].astype(float) - RAMP * 255).max() <= 1


def test_numbers_that_are_none_are_black(tmp_path):
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    loaded = np.asarray(load_image(saved(tmp_path / "a.tif", Image.fromarray(values))))[..., 0]
    assert loaded[0, :3].max() == 0 and loaded[-1, -1] == 255


def test_a_flat_float_picture_is_read(tmp_path):
    assert load_image(saved(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), 1e30, np.float32)))).size == (4, 4)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_colours_of_every_mode(tmp_path, mode, colour, expected):
    suffix = ".tif" if mode == "CMYK" else ".png"
    loaded = load_image(saved(tmp_path / f"a{suffix}", Image.new(mode, (4, 4), colour)))
    assert loaded.mode == "RGB" and loaded.getpixel((1, 1)) == expected


def test_palettes_and_their_transparent_entry(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    assert load_image(saved(tmp_path / "a.png", picture)).getpixel((0, 0)) == (200, 100, 50)
    assert load_image(saved(tmp_path / "b.png", picture, transparency=1)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if suffix == ".webp" else {}
    loaded = load_image(saved(tmp_path / f"a{suffix}", first, save_all=True, append_images=[second], **options))
    assert loaded.getpixel((4, 4)) == (255, 0, 0)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height, *chunks):
    packed = zlib.compressobj(9)
    row = bytes(1 + min(width, 13_000) * 3)
    rows = b"".join(packed.compress(row) for _ in range(min(height, 200))) + packed.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def refusal(path):
    with pytest.raises(InputError) as error:
        load_image(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


@pytest.mark.full
def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(13_000, 13_000))
    assert "13000 x 13000" in refusal(path)
    program = (
        "import resource, sys\nfrom foveate.api.pictures import load_image\nfrom foveate.errors import InputError\n"
        "import PIL.Image, PIL.PngImagePlugin\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    load_image(sys.argv[1])\nexcept InputError:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 100_000  # KiB
    path.write_bytes(png_of(2**31 - 1, 2**31 - 1))
    assert "too large" in refusal(path) or "pixels" in refusal(path)
    texts = [chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1_000_000))) for n in range(80)]
    path.write_bytes(png_of(4, 4, *texts))
    assert "cannot read" in refusal(path)
    path.write_bytes(png_of(4, 4, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000)))))
    assert "cannot read" in refusal(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tif", ".bmp"])
def test_half_a_file_and_random_damage_are_one_line_or_a_picture(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(buffer, Image.registered_extensions()[suffix])
    whole, random = buffer.getvalue(), np.random.default_rng(0)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot read" in refusal(path)
    for _ in range(40):
        broken = bytearray(whole)
        for at in random.integers(0, min(len(whole), 400), 6):
            broken[at] = random.integers(0, 256)
        path.write_bytes(broken)
        with suppress(InputError):
            assert load_image(path).mode == "RGB"


def test_what_is_no_picture_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for path, words in (
        (tmp_path / "pipe.png", "a pipe"),
        (tmp_path / "empty.png", "0 bytes"),
        (tmp_path / "script.eps", "cannot read"),
        (tmp_path / "none.png", "no picture at"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("/dev/zero", "a device"),
        (tmp_path, "a folder"),
        ("https://example.org/cat.png", "download it and name the file"),
        ("data:image/png;base64," + "A" * 10_000, "download it"),
        ("~nosuchuser/cat.png", "no such user"),
    ):
        assert words in refusal(path)


def test_damaged_metadata_is_passed_over(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add(b"eXIf", b"MM\0*\xff\xff\xff\xff")
    assert load_image(saved(tmp_path / "a.png", Image.new("RGB", (4, 4)), pnginfo=info)).size == (4, 4)
