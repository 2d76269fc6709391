"""Files appear whole or not at all, are refused before the work begins, and are never what is read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate.errors import InputError
from foveate.files.writing import check_output_folder, check_outputs, reserved, write_file, write_files

OLD, NEW = b"old" * 1000, b"new" * 3000


def rest(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text ü", b"bytes", lambda file: file.write(b"by hand")])
def test_text_bytes_and_functions_are_written(tmp_path, content):
    path = tmp_path / "a"
    write_file(path, content)
    expected = {str: b"text \xc3\xbc", bytes: b"bytes"}.get(type(content), b"by hand")
    assert path.read_bytes() == expected and rest(tmp_path) == ["a"]


def test_rights_are_those_of_a_plain_open(tmp_path):
    with open(tmp_path / "plain", "wb"):
        pass
    write_file(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "private").write_bytes(b"x")
    (tmp_path / "private").chmod(0o600)
    write_file(tmp_path / "private", b"y")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    real.write_bytes(OLD)
    link.symlink_to(real)
    write_file(link, NEW)
    assert link.is_symlink() and real.read_bytes() == NEW


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, broken, number):
    path = tmp_path / "a"
    path.write_bytes(OLD)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    if broken != "write":
        monkeypatch.setattr(os, broken, fail)
    with pytest.raises(InputError, match=os.strerror(number)):
        write_file(path, fail if broken == "write" else NEW)
    monkeypatch.undo()
    assert path.read_bytes() == OLD and rest(tmp_path) == ["a"]


def test_a_failure_in_the_second_file_leaves_the_first_as_it_was(tmp_path):
    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(InputError, match="b: No space left"):
        write_files({tmp_path / "a": NEW, tmp_path / "b": fail})
    assert (tmp_path / "a").read_bytes() == OLD and rest(tmp_path) == ["a"]


def test_an_interrupt_leaves_nothing_beside_the_file(tmp_path):
    def stop(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", stop)
    assert rest(tmp_path) == []


PROGRAM = """
import sys
from pathlib import Path
from foveate.files.writing import write_file
path, number = Path(sys.argv[1]), 0
while True:
    number += 1
    write_file(path, b"%08d" % number * 50000)
    if number == 1:
        print("ready", flush=True)
"""


def test_a_kill_at_any_moment_leaves_one_whole_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "a"
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.003 * number)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stdout.close()
        content = path.read_bytes()
        assert len(content) == 400_000 and content == content[:8] * 50_000
    write_file(path, NEW)
    assert path.read_bytes() == NEW and rest(tmp_path) == ["a"]


def refusal(path, inputs=(), **others):
    with pytest.raises(InputError) as error:
        check_outputs({"--out": path, **others}, inputs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_could_not_be_written_is_refused_before(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "kept").write_text("x")
    (tmp_path / "kept").chmod(0o444)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    os.mkfifo(tmp_path / "pipe")
    assert "a folder; name a file in it" in refusal(tmp_path)
    assert "does not exist or is no folder" in refusal(tmp_path / "none" / "x")
    assert "is a file; name a folder there" in refusal(tmp_path / "file" / "x")
    assert "File name too long" in refusal(tmp_path / ("x" * 256))
    assert "File name too long" in refusal(tmp_path / "/".join(["x" * 200] * 30))
    assert "read-only" in refusal(tmp_path / "kept")
    assert "symbolic links" in refusal(tmp_path / "circle")
    assert "does not exist" in refusal(tmp_path / "dangling")
    assert "zero byte" in refusal(tmp_path / "a\0b")
    assert "a pipe" in refusal(tmp_path / "pipe")
    assert "a device" in refusal(Path("/dev/null"))
    assert "nothing can be written in" in refusal(Path("/proc/self/x"))


def test_a_name_as_long_as_names_may_be_is_written(tmp_path):
    path = tmp_path / ("x" * 255)
    check_outputs({"--out": path})
    write_file(path, b"x")
    assert path.read_bytes() == b"x"


def test_an_input_is_never_an_output(tmp_path):
    source, folder = tmp_path / "photo.png", tmp_path / "frames"
    source.write_bytes(OLD)
    folder.mkdir()
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for target in (source, tmp_path / "soft", tmp_path / "hard", folder / ".." / "photo.png"):
        assert "what is read" in refusal(target, [source])
    assert "what is read" in refusal(source, [tmp_path / "soft"])
    assert "what is read" in refusal(folder / "new.png", [folder])
    check_outputs({"--out": tmp_path / "other"}, [source, folder])


def test_two_outputs_are_two_files(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert "--out is the same file" in refusal(tmp_path / "new", **{"--png": tmp_path / "new"})
    assert "--out is the same file" in refusal(tmp_path / "new", **{"--png": tmp_path / "link"})


def test_checking_leaves_nothing(tmp_path):
    check_outputs({"--out": tmp_path / "a", "--png": None})
    check_output_folder("--out", tmp_path / "b" / "c")
    assert rest(tmp_path) == []


def test_folders_for_files_are_refused_before(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "is a file"),
        (tmp_path / ("x" * 256), "File name too long"),
        (Path("/proc/x"), "nothing can be written in"),
    ):
        with pytest.raises(InputError, match=words):
            check_output_folder("--out", path)


def test_a_reserved_name_goes_again_if_nothing_was_written(tmp_path):
    with reserved(tmp_path / "a"), pytest.raises(InputError, match="exists"), reserved(tmp_path / "a"):
        pass
    assert rest(tmp_path) == []
    with reserved(tmp_path / "a"):
        write_file(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW
